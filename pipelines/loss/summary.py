"""The table on the terminal of what the language model loses: a row an SAE or baseline, scope by scope."""

from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

_SCOPES = ("all_without_first", "assistant_without_first", "all")
_FIGURES = {"kl": "KL", "delta_ce": "CE\nadded", "delta_ce_percent": "%", "ce_recovered_mean": "CE\nrecovered"}


def print_losses(losses: Sequence[dict[str, Any]], console: Console) -> None:
    """Print what eval_loss.json of some SAEs of one layer says; nothing where there is none."""
    if not losses:
        return
    first = losses[0]
    table = Table(title=f"{first['model']['name']} with layer {first['layer']} replaced: {first['num_tokens']:,} "
                        "held-out tokens", title_justify="left")
    table.add_column("SAE and scope", no_wrap=True)
    for heading in _FIGURES.values():
        table.add_column(heading, justify="right", no_wrap=True)
    for number, loss in enumerate(losses):
        if number:
            table.add_section()
        table.add_row(f"[bold]{loss['sae']}")
        for stream, scopes in loss["streams"].items():
            for name in _SCOPES:
                cells = [_number(scopes[name][figure], ".1f" if "percent" in figure else ".4f") for figure in _FIGURES]
                table.add_row(f"  {name}{'' if stream == 'conversations' else f', {stream}'}", *cells)
    console.print(table)
    console.print("KL and CE in nats per token; CE recovered is of mean ablation. Without_first leaves position 0 as "
                  "it is. 95 % intervals stand in eval_loss.json.", highlight=False, soft_wrap=True)


def _number(value: float | None, form: str) -> str:
    return "–" if value is None else format(value, form)
