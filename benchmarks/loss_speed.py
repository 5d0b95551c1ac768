"""How long the language model's metrics of an SAE take, against one plain forward pass of the model.

    python -m benchmarks.loss_speed                          # layer 9 of the demo's cache, 10,000 held-out tokens
    python -m benchmarks.loss_speed --tokens 1000 --rounds 1

A clean and a spliced pass start from the rows of the cache: the layers behind it, the head, and for the spliced one
the SAE; CE of both and KL between them included. The plain pass is the whole model on the same token ids in the same
batches, with its loss, as transformers computes it. Ablations, which all SAEs of a layer share, are not counted.
Two SAEs against one says what each further SAE of the layer adds.

Threads' processor seconds are measured beside wall seconds: on a machine that others use too they are steadier.
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from benchmarks.measuring import interleave, median_ratio, save
from harvest.device import find_device
from pipelines.loss.evaluate import LossRows
from pipelines.loss.run import Wanted, open_model
from pipelines.loss.scores import score
from pipelines.loss.streams import read_stream
from shared.reading.cache import open_cache
from train.export import load_sae
from train.training_set import layer_folder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", default="caches/demo")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="the layer's first BatchTopK SAE is taken")
    parser.add_argument("--layer", type=int, default=9)
    parser.add_argument("--tokens", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()

    cache, device = open_cache(arguments.cache), find_device()
    opened = open_model(cache, arguments.layer, device)
    model = opened.split
    sae = load_sae(min(layer_folder(arguments.runs, cache, arguments.layer).glob("batchtopk-*")))
    stream = read_stream(cache, arguments.layer, "conversations", Wanted(arguments.tokens).num_tokens,
                         opened.source.tokenizer)
    rows = LossRows(cache, arguments.layer, stream, model, device)

    @torch.inference_mode()
    def plain() -> None:
        for batch in rows:
            model.model(input_ids=batch.ids, labels=batch.ids, use_cache=False)

    @torch.inference_mode()
    def spliced(num_saes: int) -> None:
        for batch in rows:
            scored = np.flatnonzero(stream.predicts[batch.tokens])
            at = batch.slots[torch.from_numpy(scored)]
            targets = torch.from_numpy(stream.token_id[batch.tokens[scored] + 1])
            clean = model.rest(batch.x).flatten(0, 1)[at]
            hidden = {}
            for number in range(num_saes):
                x = torch.zeros_like(batch.x)
                x.view(-1, x.shape[-1])[batch.slots] = sae(batch.x.flatten(0, 1)[batch.slots])
                hidden[number] = model.rest(x).flatten(0, 1)[at]
            score(model, clean, hidden, targets)

    processor: dict[str, list[float]] = {}

    def timed(name: str, contender: Callable[[], None]) -> Callable[[], None]:
        def run() -> None:
            started = time.process_time()
            contender()
            processor.setdefault(name, []).append(time.process_time() - started)

        return run

    contenders = {
        "plain pass with its loss": plain,
        "clean and spliced": lambda: spliced(1),
        "clean and two spliced": lambda: spliced(2),
    }
    wall = interleave({name: timed(name, contender) for name, contender in contenders.items()}, arguments.rounds)
    one, two = ({kind: median_ratio(seconds[name], seconds["plain pass with its loss"])
                 for kind, seconds in (("wall", wall), ("processor", processor))}
                for name in ("clean and spliced", "clean and two spliced"))
    print(f"{len(stream):,} tokens: clean and spliced {one['wall']:.2f} plain passes ({one['processor']:.2f} in "
          f"processor seconds); a further SAE {two['processor'] - one['processor']:.2f}")
    save("loss_speed", {"layer": arguments.layer, "tokens": len(stream), "sae": sae.architecture, "d_sae": sae.d_sae,
                        "seconds": wall, "processor_seconds": processor, "times_plain_pass": one,
                        "two_saes_times_plain_pass": two})


if __name__ == "__main__":
    main()
