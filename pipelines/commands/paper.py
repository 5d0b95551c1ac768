"""``python -m pipelines paper``: the paper's 240 SAEs, what they would cost, and what to type for them."""

import click
from rich.console import Console
from rich.table import Table

from pipelines.paper.costs import Cost, Gpu, cost_of
from pipelines.paper.models import PAPER_MODELS
from pipelines.paper.sae_set import PaperCache, paper_caches
from train.evaluation.summary import summary_console

_DEFAULT = Gpu()
_POSITIVE = click.FloatRange(min=0, min_open=True)

_EPILOG = """\b
Examples:
  python -m pipelines paper
  python -m pipelines paper qwen2.5-0.5b-instruct --saes --tflops 312 --tflops-float32 19.5 --terabytes 2.0
  python -m pipelines paper --commands
"""


@click.command(epilog=_EPILOG)
@click.argument("models", nargs=-1, metavar="[MODEL]...")
@click.option("--saes", is_flag=True, help="List every SAE too, by its name.")
@click.option("--commands", is_flag=True, help="Print what harvests and trains it all instead, a line a cache.")
@click.option("--tflops", type=_POSITIVE, default=_DEFAULT.tflops, show_default=True,
              help="10^12 operations a second of a GPU in bfloat16, in which a model runs.")
@click.option("--tflops-float32", type=_POSITIVE, default=_DEFAULT.tflops_float32, show_default=True,
              help="The same in float32, in which the paper trains.")
@click.option("--terabytes", type=_POSITIVE, default=_DEFAULT.terabytes, show_default=True,
              help="10^12 bytes a second of its memory.")
@click.option("--utilisation", type=click.FloatRange(min=0, max=1, min_open=True), default=_DEFAULT.utilisation,
              show_default=True, help="Share of all three that is reached: a guess.")
def paper(models: tuple[str, ...], saes: bool, commands: bool, tflops: float, tflops_float32: float, terabytes: float,
          utilisation: float) -> None:
    """List the FAST paper's 240 SAEs with tokens, bytes and estimated GPU hours. Harvests and trains nothing.

    MODEL is an alias; without one all seven of the paper. The hours are an estimate from the model of a GPU that the
    options state, and no measurement; the formulas are printed, and explained in docs/paper.md.
    """
    caches = paper_caches(models or PAPER_MODELS)
    if commands:
        for cache in caches:
            click.echo(" && ".join(cache.commands()))
        return
    gpu, console = Gpu(tflops, tflops_float32, terabytes, utilisation), summary_console()
    costs = [(cache, cost_of(cache)) for cache in caches]
    console.print(_table(costs, gpu))
    if saes:
        console.print(_table_of_saes(costs, gpu))
    _print_formulas(costs[0][1], gpu, console)


def _table(costs: list[tuple[PaperCache, Cost]], gpu: Gpu) -> Table:
    table = _empty("the FAST paper's SAEs, a cache on each line", 3,
                   ("model", "method", "layers", "M\ntokens", "disk\nTB", "SAEs", "read\nTB", "harvest\nPFLOP",
                    "harvest\nGPU h", "train\nPFLOP", "train\nGPU h"))
    total = [0.0] * 6
    for number, (cache, cost) in enumerate(costs):
        if number and costs[number - 1][0].model != cache.model:
            table.add_section()
        numbers = [cost.cache_bytes / 1e12, cost.bytes_read / 1e12, cost.harvest_flops / 1e15,
                   gpu.harvest_seconds(cost.harvest_flops) / 3600, cost.training_flops / 1e15,
                   cost.training_seconds(gpu) / 3600]
        total = [before + one for before, one in zip(total, numbers, strict=True)]
        table.add_row(cache.model, cache.method, " ".join(map(str, cache.layers)),
                      *_numbers(cost.num_tokens, len(cost.of_saes), numbers))
    table.add_section()
    table.add_row("all", "", "", *_numbers(sum(cost.num_tokens for _, cost in costs),
                                           sum(len(cost.of_saes) for _, cost in costs), total))
    return table


def _numbers(num_tokens: int, num_saes: int, numbers: list[float]) -> list[str]:
    disk, read, *others = numbers
    return [f"{num_tokens / 1e6:.1f}", f"{disk:.2f}", str(num_saes), f"{read:.2f}", *(f"{one:,.1f}" for one in others)]


def _table_of_saes(costs: list[tuple[PaperCache, Cost]], gpu: Gpu) -> Table:
    table = _empty("their SAEs", 4, ("cache", "method", "layer", "SAE", "steps", "M tokens", "PFLOP", "GPU h"))
    for number, (cache, cost) in enumerate(costs):
        if number:
            table.add_section()
        for sae in cost.of_saes:
            table.add_row(cache.name, cache.method, str(sae.layer), sae.name, f"{cost.steps:,}",
                          f"{cost.tokens_seen / 1e6:.2f}", f"{sae.flops / 1e15:,.1f}",
                          f"{gpu.training_seconds(sae.flops, sae.moved) / 3600:,.2f}")
    return table


def _empty(title: str, num_words: int, heads: tuple[str, ...]) -> Table:
    """A table whose first ``num_words`` columns are words, the others numbers."""
    table = Table(title=title, title_justify="left")
    for number, head in enumerate(heads):
        table.add_column(head, justify="left" if number < num_words else "right", no_wrap=True)
    return table


def _print_formulas(cost: Cost, gpu: Gpu, console: Console) -> None:
    for line in (
        f"Each SAE takes {cost.steps:,} steps, {cost.tokens_seen:,} tokens. \"Read\" is once a layer for all of its "
        "SAEs; \"disk\" are the training rows of all layers: held-out conversations, 5,000 at most, come on top.",
        "GPU hours are an estimate, and no measurement, from a GPU of "
        f"{gpu.tflops:g} TFLOP/s in bfloat16, {gpu.tflops_float32:g} in float32 and {gpu.terabytes:g} TB/s, each used "
        f"to {gpu.utilisation:.0%}:",
        "  harvest   FLOPs = tokens x layers run x (2 x weights of a layer + 2 x 2,048 x d_attention)",
        "  training  FLOPs = tokens x 10 x d_in x d_sae of an SAE, in float32, and 56 x d_in x d_sae bytes moved a "
        "step: their times add up",
        "Without planning, deduplication, evaluation, disks, and the launching of kernels: for small SAEs, with 128 "
        "rows a step, that may take longer than they run.",
    ):
        console.print(line, highlight=False, soft_wrap=True)
