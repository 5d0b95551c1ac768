"""`python -m harvest status`: what a cache holds, and what goes on in it."""

import json
import textwrap
from typing import Any

import click

from harvest.commands.options import CACHES, cache_path
from harvest.commands.report import number_ranges
from shared.errors import CorruptError, UserError
from shared.format.layout import PLAN
from shared.upkeep.description import describe

_COLUMNS = 100
_STATES = {"alive": "alive", "dead": "dead", "elsewhere": "on another machine"}


@click.command()
@click.argument("caches", nargs=-1, metavar="[CACHE]...")
@click.option("--json", "as_json", is_flag=True, help="One JSON list for scripts, an entry a cache.")
def status(caches: tuple[str, ...], as_json: bool) -> None:
    """Show what caches hold, pass by pass: units, tokens, bytes; who writes them, how fast, and what is left.

    Reads records only: whether the bytes are right, verify tells. Default: all under caches/. Exit code 77 if
    what decides the content of a cache is damaged; what can be said is printed all the same.

    \b
    Examples:
      python -m harvest status caches/demo
      python -m harvest status --json | python -m json.tool
    """
    paths = [cache_path(name) for name in caches] or sorted(path.parent for path in CACHES.glob(f"*/{PLAN}"))
    described, failed = [], []
    for path in paths:
        try:
            described.append(describe(path))
        except UserError as error:
            failed.append(error)
    if as_json:
        click.echo(json.dumps(described, indent=1))
    else:
        if not paths:
            click.echo("No caches under caches/. Make one: make harvest MODEL=... DATA=...")
        for one in described:
            _print(one)
    problems = [problem for one in described for problem in one["problems"]]
    if failed:
        for one_more in failed[1:]:
            click.echo(f"Error: {one_more}", err=True)
        raise failed[0]
    if problems:
        damaged = next(one["path"] for one in described if one["problems"])
        raise CorruptError(f"{problems[0]} See all damage: python -m harvest verify {damaged}")


def _print(one: dict[str, Any]) -> None:
    click.echo(one["path"])
    if "cache_id" in one:
        _line("made", f"{one['model']} on {one['dataset']}, cache id {one['cache_id'][:12]}")
        _line("planned", f"{one['train_tokens']:,} training + {one['held_out_tokens']:,} held-out tokens in "
                         f"{one['units']} units; {one['conversations']:,} of {one['conversations_read']:,} "
                         "conversations read")
        if one["skipped"]:
            reasons = ", ".join(f"{reason} {count:,}" for reason, count in one["skipped"].items())
            _line("skipped", f"{sum(one['skipped'].values()):,} conversations: {reasons}")
    if not one["passes"]:
        _line("harvested", "nothing yet")
    for entry in one["passes"]:
        _print_pass(entry, one.get("units"))
    for writer in one["writers"]:
        since = f" for {_duration(writer['seconds'])}" if writer["seconds"] else ""
        held = "; ".join(f"units {number_ranges(units)} of pass {name}" for name, units in writer["units"].items())
        speed = sum(entry.get("tokens_per_second", {}).get(writer["writer"], 0) for entry in one["passes"])
        more = [f"{speed:,.0f} tokens/s" if speed else "", f"holds {held}" if held else ""]
        state = f"{writer['writer']}: {_STATES[writer['state']]}{since}"
        _line("writer", ", ".join([state, *filter(None, more)]))
    for problem in one["problems"]:
        _line("damaged", problem)


def _print_pass(entry: dict[str, Any], num_units: int | None) -> None:
    if entry["layers"] is None:
        name = f"pass {entry['pass']} (its file is damaged)"
    else:
        archive = ", archive" if entry["tier"] == "archive" else ""
        name = f"layers {entry['layers']} ({entry['compute_dtype']}, {entry['attention']}{archive})"
    of_units = f" of {num_units}" if num_units is not None else ""
    tokens = f"{entry['tokens']:,} tokens"
    if "train_tokens" in entry:
        held_out = entry["tokens"] - entry["train_tokens"]
        tokens = f"{entry['train_tokens']:,} training + {held_out:,} held-out tokens"
    size = _size(entry["bytes"], entry.get("bytes_planned"))
    share = f", {100 * entry['share_of_plan']:.1f} % of the plan" if "share_of_plan" in entry else ""
    more = [
        f"{len(entry['repaired'])} units repaired ({number_ranges(entry['repaired'])})" if entry["repaired"] else "",
        f"{entry['nonfinite_rows']:,} non-finite rows" if entry["nonfinite_rows"] else "",
        f"damaged records of units {number_ranges(entry['damaged_records'])}" if entry["damaged_records"] else "",
    ]
    text = f"{name}: {entry['units']}{of_units} units, {tokens}, {size}{share}"
    click.echo(_wrapped("  " + ", ".join([text, *filter(None, more)])))
    if together := sum(entry.get("tokens_per_second", {}).values()):
        _line("", f"{together:,.0f} tokens/s")
    elif last := entry.get("last_tokens_per_second"):
        _line("", f"{last:,.0f} tokens/s a writer when it was last filled")
    if entry.get("tokens_left"):
        time_left = f", about {_duration(entry['seconds_left'])}" if entry["seconds_left"] else ""
        _line("", f"{entry['tokens_left']:,} tokens left for the {entry['tokens_asked']:,} asked{time_left}")


def _line(name: str, text: str) -> None:
    click.echo(_wrapped(f"  {name:9s} {text}"))


def _wrapped(text: str) -> str:
    return textwrap.fill(
        text, _COLUMNS, subsequent_indent=" " * 12, break_long_words=False, break_on_hyphens=False,
        drop_whitespace=True, replace_whitespace=False,
    )


def _size(num_bytes: int, planned: int | None) -> str:
    scale, unit = (1e9, "GB") if (planned or num_bytes) >= 1e8 else (1e6, "MB")
    return f"{num_bytes / scale:.3f} " + (f"of {planned / scale:.3f} " if planned is not None else "") + unit


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
