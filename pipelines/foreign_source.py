"""Where an SAE that was made elsewhere lies: a local folder, or a folder of a repository of the model hub."""

import re
from pathlib import Path

from harvest.hub import download_sae
from shared.errors import RecipeError
from train.export.loader import LAYOUTS

_REPOSITORY = re.compile(r"([\w.-]+/[\w.-]+)((?:/[\w.-]+)*)")


def find_sae(given: str) -> tuple[Path, str | None]:
    """The local folder of what ``--sae`` names, and the commit where it was downloaded.

    Raises:
        RecipeError: it is neither a folder nor a repository's name, or there is no such repository.
        TryAgainError: the hub cannot be reached.
    """
    if Path(given).is_dir():
        return Path(given), None
    named = _REPOSITORY.fullmatch(given)
    if named is None or ".." in given.split("/") or given.startswith("."):
        raise RecipeError(f"--sae {given!r}: there is no such folder. Expected one, or a repository of the hub with "
                          "the folder in it: org/name or org/name/layers.9.")
    files = sorted({name for names, _ in LAYOUTS.values() for name in names})
    return download_sae(named[1], named[2].strip("/"), files)
