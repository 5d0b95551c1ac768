"""Stage 2 on the command line: python -m train --help."""

import logging

import click

from shared.terminal import run_command
from train.commands.export import export
from train.commands.run import run


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def main() -> None:
    """Train sparse autoencoders from a cache of activations. No language model is loaded.

    \b
    Example:
      python -m train run --layer 9
    """


for command in (run, export):
    main.add_command(command)

if __name__ == "__main__":
    logging.basicConfig(format="%(levelname)s: %(message)s", level=logging.WARNING)
    run_command(main)
