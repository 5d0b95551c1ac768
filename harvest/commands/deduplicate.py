"""`python -m harvest deduplicate`: chats without those that share an n-gram with an earlier one."""

from pathlib import Path
from typing import Any, get_args

import click

from harvest.config import Deduplicate, LayoutName
from harvest.conversation import ROLES
from harvest.deduplicate import MEMORY_BYTES, find_duplicates
from harvest.jsonl_output import ENDINGS
from harvest.kept_chats import Summary, write_kept
from harvest.sources import Source, find_source
from shared import storage
from shared.errors import RecipeError

_SHOWN = 120


def _choice(field: str) -> click.Choice[str]:
    return click.Choice(get_args(Deduplicate.model_fields[field].annotation))


@click.command()
@click.argument("input_name", metavar="INPUT")
@click.argument("output_name", metavar="OUTPUT")
@click.option("--n", type=click.IntRange(min=1), default=20, show_default=True, help="Words of an n-gram.")
@click.option("--unit", type=_choice("unit"), default="words", show_default=True,
              help="Words stand between unicode whitespace (str.split); characters are code points.")
@click.option("--roles", help='Roles whose turns count: "user assistant" ignores system prompts. Default: all.')
@click.option("--short-texts", type=_choice("short_texts"), default="keep", show_default=True,
              help="What turns of fewer than n words count for: nothing; each as one n-gram; or, in a chat that has "
                   "no longer one, all of them as one.")
@click.option("--report", metavar="FILE", help="JSONL of what was dropped for what. Default: OUTPUT.dropped.")
@click.option("--dry-run", is_flag=True, help="Only count; writes nothing, or just --report.")
@click.option("--memory", type=click.FloatRange(min=0), default=MEMORY_BYTES / 2**30, show_default=True,
              help="GiB for n-grams. The rest goes to temporary files beside OUTPUT, 12 bytes a word.")
@click.option("--split", default="train", show_default=True, help="Split of a hub data set.")
@click.option("--config", help="Configuration (subset) of a hub data set.")
@click.option("--layout", type=click.Choice(get_args(LayoutName)), help="How rows hold conversations. Default: as the "
                                                                        "first row says.")
def deduplicate(
    input_name: str, output_name: str, report: str | None, dry_run: bool, memory: float, roles: str | None, split: str,
    config: str | None, layout: str | None, **table: Any,
) -> None:
    """Write the chats of INPUT that share no run of 20 words with an earlier one that was kept to OUTPUT.

    INPUT is what --dataset takes: a file, a folder or a pattern of files, an alias or a hub id. OUTPUT is .jsonl,
    .jsonl.gz or .jsonl.zst, rows of messages alone, and is there only when all of it is written. The first of
    several alike is kept. The rule is Algorithm 1 of arXiv 2506.07691 and is exact, whatever the memory.

    \b
    Examples:
      python -m harvest deduplicate my.jsonl kept.jsonl
      python -m harvest deduplicate "chats/*.parquet" kept.jsonl.zst --roles "user assistant"
      python -m harvest deduplicate chitchat kept.jsonl --dry-run
    """
    options = Deduplicate(**table, roles=parse_roles(roles))
    source = find_source(input_name, split, config=config, layout=layout)
    output = find_output(output_name, input_name, source)
    report_path = Path(report) if report else None if dry_run else output.with_name(f"{output.name}.dropped")
    if not dry_run:
        storage.make_folder(output.parent)
    duplicates = find_duplicates(source.read, options, memory_bytes=int(memory * 2**30),
                                 folder=None if dry_run else output.parent)
    summary = write_kept(source, duplicates, options, None if dry_run else output, report_path)
    print_summary(summary, options)
    if not dry_run:
        click.echo(f"written  {output}; what was dropped: {report_path}")
        click.echo(f"next     make harvest MODEL=org/name DATA={output}")


def parse_roles(text: str | None) -> list[str] | None:
    """Roles separated by spaces or commas; None for all.

    Raises:
        RecipeError: a role that no conversation has.
    """
    if text is None:
        return None
    roles = text.replace(",", " ").split()
    if not roles or not {*roles} <= {*ROLES}:
        raise RecipeError(f"--roles {text!r}: expected some of {', '.join(ROLES)}, for example "
                          '--roles "user assistant"')
    return roles


def find_output(name: str, input_name: str, source: Source) -> Path:
    """The path of OUTPUT.

    Raises:
        RecipeError: it is no JSONL file, or would be read as part of INPUT.
    """
    path = Path(name)
    if not path.name.endswith(ENDINGS) or path.is_dir():
        raise RecipeError(f"OUTPUT {name!r}: expected a file name that ends with {', '.join(ENDINGS)}, for example "
                          "kept.jsonl.")
    folder = Path(input_name)
    if path.resolve() in {file.resolve() for file in source.files} or (
        source.files and folder.is_dir() and path.resolve().parent == folder.resolve()
    ):
        raise RecipeError(f"OUTPUT {name!r} is among the files of INPUT {input_name!r}. Expected another file, in "
                          "another folder if INPUT is one.")
    return path


def print_summary(summary: Summary, options: Deduplicate) -> None:
    """What was read, kept and dropped, and for which n-grams most."""
    num_skipped = summary.skipped.total()
    num_kept = summary.num_read - summary.num_dropped
    click.echo(f"read     {summary.num_read:,} conversations")
    if num_skipped:
        reasons = ", ".join(f"{reason} {count:,}" for reason, count in sorted(summary.skipped.items()))
        click.echo(f"skipped  {num_skipped:,} rows ({reasons}); they are not in OUTPUT")
    click.echo(f"kept     {num_kept:,} ({num_kept / summary.num_read:.1%})")
    click.echo(f"dropped  {summary.num_dropped:,} ({summary.num_dropped / summary.num_read:.1%}), each for {options.n} "
               f"{options.unit} in common with a kept one")
    for reason in summary.reasons:
        text = " ".join(reason.ngram.split())
        click.echo(f"         {reason.count:,} like {reason.original}: {text[:_SHOWN]!r}")
