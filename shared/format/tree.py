"""The folders of a cache hold plain files and folders with printable names, and nothing else."""

import os
from pathlib import Path

from shared.errors import CorruptError, StorageError
from shared.format.layout import GROUP
from shared.plain_files import refuse

_MAX_ENTRIES = 4_000_000


def check_tree(cache: Path) -> None:
    """Check that a cache holds nothing but files and folders, with names that can be printed.

    Called before anything else of a cache is looked at. The shards' folders ``layers/<L>/<array>/c``, as large
    as the cache, are left to `shared.plain_files.file_size`, asked for each of their files when a layer is opened.

    Raises:
        CorruptError: a link, a pipe, a socket, a device; or more entries than a cache has.
    """
    pending = [os.fspath(cache)]
    group = f"{pending[0]}/{GROUP}/layers/"
    entries = 0
    while pending:
        folder = pending.pop()
        try:
            with os.scandir(folder) as found:
                for entry in found:
                    entries += 1
                    if not entry.name.isprintable():
                        raise CorruptError(f"{cache} holds a name that no cache has: {entry.path!r}.")
                    if entry.is_dir(follow_symlinks=False):
                        if not (entry.name == "c" and entry.path.startswith(group)):
                            pending.append(entry.path)
                    elif not entry.is_file(follow_symlinks=False):
                        refuse(entry.path, entry.is_symlink())
        except (FileNotFoundError, PermissionError):
            continue  # removed by its writer meanwhile, or of no use to anybody here: opening it says so
        except OSError as error:
            raise StorageError(f"Cannot read {folder}: {error.strerror}.") from error
        if entries > _MAX_ENTRIES:
            raise CorruptError(f"{cache} holds more than {_MAX_ENTRIES:,} files beside its shards.")
