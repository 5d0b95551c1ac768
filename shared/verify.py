"""Checking a whole cache against its plan and its records, without torch or zarr.

Files are read with ordinary reads, not through a map: an I/O error is then an error, not a bus error.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from shared.commits import check_record, locate, read_records
from shared.digests import file_digest
from shared.layout import inside
from shared.plan import read_passes, read_plan


@dataclass(frozen=True)
class Checked:
    """One file that was looked at."""

    path: Path
    size: int
    problem: str | None
    """What is wrong with it; None if it is what was written."""


def files_to_check(cache: Path) -> list[tuple[Path, int | None, str, str]]:
    """Every file that plan and records vouch for: path, size if known, digest, and whose it is.

    Raises:
        CorruptError: the plan, a pass or a record is damaged.
    """
    plan = read_plan(cache)
    files: list[tuple[Path, int | None, str, str]] = [
        (inside(cache, path), None, digest, "plan") for path, digest in sorted(plan.digests.items())
    ]
    for pass_id, entry in read_passes(cache).items():
        files += [(inside(cache, path), None, digest, "pass") for path, digest in sorted(entry.digests.items())]
        for record in read_records(cache, pass_id).values():
            check_record(cache, plan, pass_id, record)
            for file in [*record.files, record.blocks]:
                files.append((locate(cache, file), file.size, file.xxh3, f"unit {record.unit}"))
    return files


def verify(files: list[tuple[Path, int | None, str, str]]) -> Iterator[Checked]:
    """Check the files one by one: there, of the right size, of the right bytes."""
    for path, size, digest, owner in files:
        try:
            found = path.stat().st_size
            if size is not None and found != size:
                yield Checked(path, found, f"{owner}: {found} bytes, expected {size}")
            elif file_digest(path) != digest:
                yield Checked(path, found, f"{owner}: damaged, its xxh3 is not the recorded one")
            else:
                yield Checked(path, found, None)
        except OSError as error:
            yield Checked(path, 0, f"{owner}: {error.strerror}")
