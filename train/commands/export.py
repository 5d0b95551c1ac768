"""``python -m train export``: a finished SAE as a folder that another tool opens."""

from pathlib import Path

import click

from train.export.convert import FORMATS, export_sae

_EPILOG = """\b
Example:
  python -m train export runs/demo/layer9/batchtopk-4608-k32-s0-1a2b3c --format dictionary_learning --out exported
"""


@click.command(epilog=_EPILOG)
@click.argument("run_folder", type=click.Path(path_type=Path))
@click.option("--format", "form", type=click.Choice(sorted(FORMATS)), required=True, help="Whose folder it becomes.")
@click.option("--out", type=click.Path(path_type=Path), required=True,
              help="The folder to write; the same command writes it again.")
def export(run_folder: Path, form: str, out: Path) -> None:
    """Write the finished SAE in RUN_FOLDER as a folder of dictionary_learning or of sparsify.

    Latents and reconstructions of raw activations stay what they are. RUN_FOLDER itself is SAELens's layout: its
    SAE.load_from_disk opens it with no export. sparsify can represent TopK alone. See docs/formats.md.
    """
    export_sae(run_folder, form, out)
    click.echo(str(out))
