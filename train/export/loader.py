"""Open an SAE of ours, or anybody's in a layout that we know, for evaluation and use: it takes raw activations."""

from collections.abc import Callable
from pathlib import Path

import torch

from shared.errors import CorruptError, RecipeError, StorageError
from shared.sealed_json import read_sealed
from train.export import dictionary_learning, saelens, sparsify
from train.export.exported import AGAIN, RUN, ExportedSAE, check_files

LAYOUTS: dict[str, tuple[tuple[str, str], Callable[[Path, str | torch.device], ExportedSAE]]] = {
    saelens.LAYOUT: ((saelens.CONFIG, saelens.SAE_WEIGHTS), saelens.read_sae),
    dictionary_learning.LAYOUT: ((dictionary_learning.CONFIG, dictionary_learning.WEIGHTS),
                                 dictionary_learning.read_dictionary),
    sparsify.LAYOUT: ((sparsify.CONFIG, sparsify.WEIGHTS), sparsify.read_sparse_coder),
}
"""By the layout's name: the files of its folder, config first, and what opens it."""


def load_sae(folder: Path | str, device: str | torch.device = "cpu") -> ExportedSAE:
    """Open the SAE in a folder: ``runs/<cache>/layer<L>/<name>/``, or one of another tool.

    Raises:
        StorageError: there is none, or a file cannot be read. CorruptError: its files do not fit each other or the
            digests in our run.json, or its weights are not all numbers.
        RecipeError: it is of a kind that is not known here.
    """
    folder = Path(folder)
    if (folder / RUN).is_file():
        check_files(folder, read_sealed(folder / RUN))
    (_, weights), read = LAYOUTS[find_layout(folder)]
    sae = read(folder, device)
    r_mag, b_mag = sae.magnitude or (None, None)
    for part in (sae.W_enc, sae.W_dec, sae.b_dec, sae.b_enc, sae.threshold, r_mag, b_mag):
        # A threshold or bias of infinity may be meant: a latent that is switched off.
        of_latents = part is not None and part.shape == (sae.d_sae,)
        if part is not None and (part.isnan().any() if of_latents else not part.sum(dtype=torch.float64).isfinite()):
            raise CorruptError(f"{folder / weights} has values that are no finite numbers. {AGAIN}")
    return sae


def weights_file(folder: Path) -> Path:
    """The file of an SAE's weights in its folder.

    Raises:
        StorageError, RecipeError: as `find_layout`.
    """
    (_, weights), _ = LAYOUTS[find_layout(folder)]
    return folder / weights


def find_layout(folder: Path) -> str:
    """The layout of a folder, by its files' names.

    Raises:
        StorageError: it is not there, or holds one file of a layout without the other. RecipeError: it has no layout
            that is known here.
    """
    if not folder.is_dir():
        raise StorageError(f"No SAE in {folder}: there is no such folder. Expected one that holds {saelens.CONFIG} and "
                           f"{saelens.SAE_WEIGHTS}.")
    for name, (files, _) in LAYOUTS.items():
        if all((folder / file).is_file() for file in files):
            return name
    for config, weights in (files for files, _ in LAYOUTS.values()):
        if (folder / weights).is_file():
            raise StorageError(f"No SAE in {folder}: {weights} is there, but {config} is missing.")
    if (folder / saelens.CONFIG).is_file():
        raise StorageError(f"No SAE in {folder}: {saelens.CONFIG} is there, but its weights are missing, "
                           f"{saelens.SAE_WEIGHTS} (SAELens) or {sparsify.WEIGHTS} (sparsify).")
    known = "; ".join(f"{config} and {weights} ({name})" for name, ((config, weights), _) in LAYOUTS.items())
    inside = [path.name for path in sorted(folder.iterdir()) if _has_layout(path)]
    hint = f" Those inside it: {', '.join(inside[:8])}{', ...' if len(inside) > 8 else ''}." if inside else ""
    raise RecipeError(f"{folder} is no SAE. Expected {known}.{hint}")


def _has_layout(folder: Path) -> bool:
    return any(all((folder / file).is_file() for file in files) for files, _ in LAYOUTS.values())
