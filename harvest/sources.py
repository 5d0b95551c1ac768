"""Where conversations come from: the embedded chats, a local JSONL file, a data set of the hub."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harvest import embedded
from harvest.conversation import Conversation, Skipped, parse_row
from harvest.hub import kept_commit, resolve_commit
from shared.digests import file_digest
from shared.errors import DataError, RecipeError

EMBEDDED = "chitchat"

HUB_DATASETS = {"tulu-3-sft-mixture": "allenai/tulu-3-sft-mixture"}
"""Data sets of the hub by the name a user types."""


@dataclass(frozen=True)
class Source:
    """A resolved data set: its name, and what of it goes into the cache's identity."""

    name: str
    identity: dict[str, Any]
    path: Path | None = None
    """A local JSONL file."""

    def read(self) -> Iterator[Conversation | Skipped]:
        """Conversations in the order of the source; a malformed row is `Skipped` with its reason."""
        if self.path is not None:
            yield from _read_jsonl(self.path)
        elif self.name == EMBEDDED:
            yield from embedded.read_chats()
        else:
            from harvest.hub_dataset import stream_rows

            for number, row in enumerate(stream_rows(self.name, self.identity["revision"], self.identity["split"])):
                yield parse_row(row, f"{self.name}:{number}")


def find_source(
    name: str, split: str = "train", revision: str | None = None, kept: Mapping[str, Any] | None = None
) -> Source:
    """Resolve a data set by alias, path or hub id; a hub data set's revision becomes a commit.

    Args:
        kept: name and revision in the plan that is there; taken where ``revision`` is None and the name is the same.

    Raises:
        RecipeError: no such file or data set.
        TryAgainError: the hub cannot be reached.
    """
    if name == EMBEDDED:
        return Source(name, {"name": name, "sha256": embedded.chat_fingerprint(), "min_turns": embedded.MIN_TURNS})
    path = Path(name)
    if path.is_file():
        if path.suffix not in {".jsonl", ".json"}:
            raise RecipeError(f"Data file {name!r}: expected JSONL, one object a line with messages (role, content).")
        return Source(path.name, {"name": path.name, "xxh3": file_digest(path)}, path)
    repo = HUB_DATASETS.get(name, name)
    if repo.count("/") != 1 or path.suffix in {".jsonl", ".json"} or name.startswith((".", "/")):
        known = ", ".join([EMBEDDED, *HUB_DATASETS])
        raise RecipeError(f"There is no data file {name!r}. Expected a JSONL file, a hub id org/name, or: {known}.")
    commit = kept_commit(repo, revision, kept) or resolve_commit(repo, revision, "dataset")
    return Source(repo, {"name": repo, "revision": commit, "split": split})


def _read_jsonl(path: Path) -> Iterator[Conversation | Skipped]:
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            place = f"{path.name}:{number}"
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:
                yield Skipped(place, "not_json", str(error)[:200])
                continue
            yield parse_row(row, place)


def check_skipped(num_read: int, skipped: dict[str, int], examples: list[Skipped], max_share: float) -> None:
    """Stop when too many rows are malformed, or none is left.

    Raises:
        DataError: with the reasons, and the first rows that were skipped.
    """
    total = sum(skipped.values())
    shown = "; ".join(f"{skip.place}: {skip.reason} ({skip.detail})" for skip in examples[:3])
    if num_read == 0:
        raise DataError("The data set is empty. Expected rows with messages (role, content).")
    if total == num_read:
        raise DataError(f"None of the {num_read:,} rows can be harvested. {shown}")
    if total > max_share * num_read:
        raise DataError(
            f"{total:,} of {num_read:,} rows are malformed ({total / num_read:.1%}, at most {max_share:.1%} allowed). "
            f"{shown}. Mend them, or allow more: --set harvest.max_skipped=0.1"
        )
