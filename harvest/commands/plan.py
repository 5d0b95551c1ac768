"""`python -m harvest plan`: the CPU half, without running the model."""

from typing import Any

import click

from harvest.commands.options import harvest_options, resolve
from harvest.commands.report import print_estimate, print_plan
from harvest.estimate import estimate
from harvest.opening import open_plan


@click.command()
@harvest_options
def plan(processes: int, **options: Any) -> None:
    """Read, template, tokenise and order the conversations; write everything but the activations.

    \b
    Example:
      python -m harvest plan --model qwen2.5-0.5b-instruct --dataset my.jsonl
    """
    job, path = resolve(**options)
    written = open_plan(job, path, processes)
    print_plan(job, written)
    print_estimate(job, written, estimate(job, written, path))
    click.echo(f"next     the same with run instead of plan fills {path}")
