"""Stage 1 on the command line: python -m harvest --help."""

import click

from harvest.commands.add_layers import add_layers
from harvest.commands.compress import compress
from harvest.commands.deduplicate import deduplicate
from harvest.commands.diff import diff
from harvest.commands.doctor import doctor
from harvest.commands.expand import expand
from harvest.commands.gc import gc
from harvest.commands.inspect import inspect
from harvest.commands.plan import plan
from harvest.commands.repair import repair
from harvest.commands.run import run
from harvest.commands.status import status
from harvest.commands.verify import verify
from shared.terminal import run_command


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def main() -> None:
    """Harvest an instruct model's residual stream from chat conversations into a cache.

    \b
    Example:
      python -m harvest run --model smollm2-135m-instruct --num-tokens 200000
    """


for command in (
    run, plan, inspect, deduplicate, status, verify, repair, gc, add_layers, doctor, diff, compress, expand,
):
    main.add_command(command)

if __name__ == "__main__":
    run_command(main)
