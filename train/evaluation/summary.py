"""The tables that end a run: figures of each SAE, or baseline, by subset, then explained variance by class."""

import textwrap
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from train.policy import TokenPolicy

_SUBSETS = ("content", "policy", "all_without_first", "special", "special_without_first")
_COLUMN = 13
"""Characters of an SAE's column of the table by class."""
_HEADINGS = ("rows", "expl.\nvariance", "l0", "mse", "log2\nmse_paper")


def summary_console() -> Console:
    """The terminal; a log, which has no width of its own, is wide enough for several SAEs."""
    console = Console()
    if not console.is_terminal:
        console.width = 120  # rich would cut the columns at 80
    return console


def print_summary(evaluations: Sequence[dict[str, Any]], console: Console) -> None:
    """Print what eval.json of some SAEs of one layer says, held-out rows throughout. 80 columns are enough."""
    first = evaluations[0]
    table = Table(title=f"layer {first['layer']} of {first['cache']}: {first['num_rows']:,} held-out rows",
                  title_justify="left")
    table.add_column("SAE and subset", no_wrap=True)
    for heading in _HEADINGS:
        table.add_column(heading, justify="right", no_wrap=True)
    for number, evaluation in enumerate(evaluations):
        if number:
            table.add_section()
        table.add_row(f"[bold]{evaluation['sae']}")
        for name in _SUBSETS:
            if name in evaluation["subsets"]:
                table.add_row(f"  {name}", *_cells(evaluation["subsets"][name]))
    console.print(table)
    columns = max(1, (console.width - 26) // _COLUMN)
    for start in range(0, len(evaluations), columns):
        _print_classes(evaluations[start : start + columns], console)
    saes = [evaluation for evaluation in evaluations if "baseline" not in evaluation]
    policies = {evaluation["sae"]: TokenPolicy.model_validate(evaluation["policy"]).describe() for evaluation in saes}
    differ = len(set(policies.values())) > 1
    for evaluation in saes:
        policy = f"; policy: {policies[evaluation['sae']]}" if differ else ""
        console.print(f"{evaluation['sae']}: {_dead(evaluation)}{policy}", highlight=False, soft_wrap=True)
    console.print("mse is per dimension, in the units of the model; every explained variance is centred on its "
                  "own rows' mean. 95 % intervals stand in eval.json.", highlight=False,
                  soft_wrap=True)


def _cells(figures: dict[str, Any]) -> list[str]:
    return [f"{figures['num_rows']:,}", _number(figures["explained_variance"], ".4f"),
            _number(figures["l0"], ".1f"), _number(figures["mse"], ".4g"), _number(figures["log2_mse_paper"], ".2f")]


def _print_classes(evaluations: Sequence[dict[str, Any]], console: Console) -> None:
    table = Table(title="explained variance (l0) by class", title_justify="left")
    table.add_column("class", no_wrap=True)
    table.add_column("rows", justify="right", no_wrap=True)
    for evaluation in evaluations:
        table.add_column(_heading(evaluation), justify="right", no_wrap=True)
    for name, figures in evaluations[0]["subsets"].items():
        if name.startswith("class:"):
            found = [evaluation["subsets"].get(name, {}) for evaluation in evaluations]
            cells = [f"{_number(figure.get('explained_variance'), '.3f')} ({_number(figure.get('l0'), '.0f')})"
                     for figure in found]
            table.add_row(name.removeprefix("class:"), f"{figures['num_rows']:,}", *cells)
    console.print(table)


def _heading(evaluation: dict[str, Any]) -> str:
    """ "batchtopk-4608-k32-s0-1a2b3c" over four lines: kind, width, sparsity, and the seed with what tells recipes
    apart; a baseline's label likewise.

    The name of an SAE that was made elsewhere as it fits.
    """
    if "baseline" in evaluation:
        return str(evaluation["baseline"]["label"]).replace(", ", "\n")
    name: str = evaluation["sae"]
    if "source" in evaluation:
        return "\n".join(textwrap.wrap(name, _COLUMN - 3))
    kind, *rest = name.rsplit("-", 2)
    return "\n".join([*kind.split("-", 2), "-".join(rest)])


def _dead(evaluation: dict[str, Any]) -> str:
    latents, d_sae = evaluation["latents"], evaluation["d_sae"]
    if latents["dead_train"] is None:
        text = f"{d_sae:,} latents; made elsewhere, so how many died while it was trained is not known"
    else:
        text = (f"{latents['dead_train']:,} of {d_sae:,} latents dead ({latents['dead_train'] / d_sae:.1%}: silent in "
                f"the last {latents['dead_train_window_tokens']:,} training tokens)")
    if latents["dead_held_out"] is None:
        return text
    return text + f"; {latents['dead_held_out']:,} silent on {latents['dead_held_out_rows']:,} held-out rows"


def _number(value: float | None, form: str) -> str:
    return "–" if value is None else format(value, form)
