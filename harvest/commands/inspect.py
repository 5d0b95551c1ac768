"""`python -m harvest inspect`: conversations as the model will see them, before GPU hours are spent."""

import io
import os
import shlex
import sys
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from harvest.commands.options import cache_path, resolve, source_options
from harvest.inspection_page import write_page
from harvest.inspection_sample import Wanted, inspect_cache, inspect_source
from harvest.inspection_terminal import print_inspection
from harvest.inspection_view import show_row
from shared.errors import RecipeError
from shared.reading.cache import open_cache

_PIPE_WIDTH = 120


@click.command()
@click.argument("cache", required=False)
@source_options
@click.option("--conversations", type=click.IntRange(min=0), default=3, show_default=True,
              help="How many to show, evenly spread over the sample.")
@click.option("--number", "numbers", type=click.IntRange(min=0), multiple=True,
              help="Show this row of the data set, or conversation of CACHE, from 0. May be given several times.")
@click.option("--place", "places", multiple=True, metavar="FILE:LINE", help="Show the row at this place: my.jsonl:17.")
@click.option("--tokens", type=click.IntRange(min=1), default=400, show_default=True,
              help="Tokens shown of each conversation.")
@click.option("--sample", default="2000", show_default=True, metavar="ROWS",
              help="Rows of each data set that the statistics are taken from, or all.")
@click.option("--evenly", is_flag=True, help="Sample a data set evenly, reading it to its end, not its first rows.")
@click.option("--html", type=click.Path(path_type=Path, dir_okay=False), help="Write a page there too.")
def inspect(
    cache: str | None, conversations: int, numbers: tuple[int, ...], places: tuple[str, ...], tokens: int,
    sample: str, evenly: bool, html: Path | None, **options: Any,
) -> None:
    """Show conversations token by token, with the class of each, and the statistics of a sample.

    Takes a model and a data set like run, or a CACHE: then the conversations are those of its plan. Reads only;
    needs no weights and no GPU.

    \b
    Examples:
      python -m harvest inspect --model smollm2-135m-instruct
      python -m harvest inspect --model qwen2.5-0.5b-instruct --dataset my.jsonl --html inspect.html
      python -m harvest inspect --model smollm2-135m-instruct --dataset my.jsonl --place my.jsonl:17
      python -m harvest inspect caches/demo --number 12
    """
    if sample != "all" and not (sample.isdecimal() and 0 < int(sample) < 10**12):
        raise RecipeError(f"--sample {sample!r}: expected a number of rows from 1, or all. For example --sample 2000")
    wanted = Wanted(conversations, numbers, places, None if sample == "all" else int(sample), evenly)
    if cache is not None:
        given = [f"--{name}" for name, value in {**options, "place": places}.items() if value]
        if given:
            raise RecipeError(f"{given[0].replace('overrides', 'set')} does not go with a cache ({cache!r}): its plan "
                              "says what it holds. Leave out one of them; --number picks a conversation.")
        if Path(cache).is_file():
            raise RecipeError(f"{cache!r} is a file, and no cache. For a file of conversations: --model NAME --dataset "
                              f"{shlex.quote(cache)}")
        found = inspect_cache(open_cache(cache_path(cache)), wanted)
    else:
        job, _ = resolve(num_tokens=None, layers=None, cache_name=None, device="cpu", fresh=False, yes=False, **options)
        found = inspect_source(job, wanted)
    rows = [show_row(found, seen, tokens) for seen in found.shown]
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # where the encoding lacks a sign, say which one
    is_pipe = not sys.stdout.isatty() and "COLUMNS" not in os.environ
    print_inspection(Console(highlight=False, width=_PIPE_WIDTH if is_pipe else None), found, rows)
    if html is not None:
        write_page(html, found, rows)
        click.echo(f"page     {html}")
