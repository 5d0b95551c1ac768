"""``python -m pipelines``: see ``python -m pipelines --help``."""

import logging

import click

from pipelines.commands.compare import compare
from pipelines.commands.demo import demo
from pipelines.commands.evaluate import evaluate
from pipelines.commands.gsnr import gsnr
from pipelines.commands.paper import paper
from pipelines.commands.table import table
from shared.terminal import run_command


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def main() -> None:
    """What needs both stages: the demo from conversations to a page, metrics of finished runs, comparisons of them.

    \b
    Example:
      python -m pipelines demo
    """


for command in (demo, evaluate, compare, table, paper, gsnr):
    main.add_command(command)

if __name__ == "__main__":
    logging.basicConfig(format="%(levelname)s: %(message)s", level=logging.WARNING)
    run_command(main)
