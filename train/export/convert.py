"""Write a finished SAE of ours as a folder of another tool, where that tool's classes can do exactly what it does."""

from pathlib import Path

from shared import storage
from shared.errors import RecipeError
from shared.sealed_json import read_sealed
from train.architectures.matryoshka import MatryoshkaConfig
from train.export import dictionary_learning, sparsify
from train.export.dictionary_learning import write_dictionary
from train.export.exported import RUN
from train.export.loader import load_sae
from train.export.sparsify import write_sparse_coder

FORMATS = {
    dictionary_learning.LAYOUT: {dictionary_learning.CONFIG, dictionary_learning.WEIGHTS},
    sparsify.LAYOUT: {sparsify.CONFIG, sparsify.WEIGHTS},
}
"""The files of each format's folder."""


def export_sae(run_folder: Path, form: str, out: Path) -> None:
    """Write the SAE of ``run_folder`` into ``out`` in a format of `FORMATS`.

    Raises:
        RecipeError: no finished SAE is there, the format cannot represent it, or ``out`` holds something else.
        CorruptError: the SAE's files are damaged. StorageError, TryAgainError: it cannot be written.
    """
    if not (run_folder / RUN).is_file():
        raise RecipeError(f"RUN_FOLDER: {str(run_folder)!r} holds no finished SAE (there is no {RUN}). Expected a "
                          "folder such as runs/<cache>/layer<L>/<sae name>.")
    run = read_sealed(run_folder / RUN)
    architecture = run["architecture"]
    if form == sparsify.LAYOUT and architecture != "topk":
        raise RecipeError(f"{run['name']} is a {architecture} SAE, and sparsify's SparseCoder keeps the k largest "
                          "latents of every token, whatever their size: it can represent topk alone. Take --format "
                          "dictionary_learning; SAELens opens the run's folder as it is.")
    if out.exists() and (not out.is_dir() or _names(out) - FORMATS[form]):
        raise RecipeError(f"--out {out} holds something else than {' and '.join(sorted(FORMATS[form]))}. Take a new "
                          "folder.")
    sae = load_sae(run_folder)
    if form == sparsify.LAYOUT:
        write_sparse_coder(out, sae)
        return
    groups = None
    if architecture == "matryoshka":
        fields = {key: value for key, value in run["recipe"]["sae"].items() if key != "architecture"}
        groups = MatryoshkaConfig.model_validate(fields).group_sizes(sae.d_sae)
    write_dictionary(out, sae, run, groups)


def _names(folder: Path) -> set[str]:
    """Names of the files in a folder, without what a killed writer left unfinished."""
    return {path.name for path in folder.iterdir() if not storage.is_partial(path)}
