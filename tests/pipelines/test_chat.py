"""The README's example of using an SAE, and what stands behind it."""

import json
from pathlib import Path

import numpy as np
import pytest

from harvest.conversation import parse_row
from pipelines.chat import run_chat
from shared.errors import DataError, RecipeError

EXAMPLE = """\
from pathlib import Path
from pipelines.chat import run_chat
from train.export import load_sae

chat = run_chat("smollm2-135m-instruct", [{"role": "user", "content": "Hello! How was your day?"}], layer=9)
sae = load_sae(next(Path("runs/demo/layer9").glob("batchtopk-*")))
latents = sae.encode(chat.x)                                          # [tokens, d_sae]
for text, token_class, top in zip(chat.text, chat.token_class, latents.topk(3).indices.tolist()):
    print(f"{text!r:16} {token_class:14} {top}")
"""


def test_the_example_runs(demo, llama, capsys):
    """As it stands in the README, with the tiny model and its SAE in place of the real ones."""
    example = EXAMPLE
    for real, tiny in (("smollm2-135m-instruct", str(llama)), ("runs/demo/layer9", str(demo.layer_folder)),
                       ("layer=9", "layer=2")):
        assert real in example
        example = example.replace(real, tiny)
    exec(example, {})
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split()[:2] == ["'<|begin_of_text|>'", "first"]
    assert sum(line.split("'")[2].split()[0] == "user" for line in lines) > 5
    assert all(len(json.loads("[" + line.split("[")[-1])) == 3 for line in lines)


def test_a_chat_gives_the_rows_of_the_cache(demo, llama):
    cache = demo.cache()
    keys = cache.array("conversations/key").read()
    data = Path(cache.path).parents[1] / "chats.jsonl"
    compared = 0
    for line in data.read_text().splitlines():
        messages = json.loads(line)["messages"]
        found = np.flatnonzero(keys == np.uint64(parse_row({"messages": messages}, "").key))
        rows = np.arange(*cache.conversation_offset[found[0] : found[0] + 2]) if len(found) else []
        if not len(found) or not np.isin(rows, cache.rows(layer=2)).all():
            continue
        chat = run_chat(str(llama), messages, layer=2, device="cpu")
        assert chat.token_class == [str(name).lower() for name in _names(cache, rows)]
        expected = cache.layer(2)[rows].astype(np.float32)
        error = np.linalg.norm(chat.x.numpy() - expected, axis=1) / np.linalg.norm(expected, axis=1)
        assert error.max() < 2**-8  # one step of bf16: batches of other lengths round differently
        compared += 1
        if compared == 5:
            return
    pytest.fail(f"only {compared} of the chats are in the cache")


def _names(cache, rows):
    from shared.format.tokens import TokenClass

    return [TokenClass(kind).name for kind in cache.token_class[rows]]


def test_a_layer_or_a_chat_that_cannot_be_run_is_an_error(llama):
    with pytest.raises(RecipeError, match="Layer 4 is out of range: tiny-llama has layers 0 to 3"):
        run_chat(str(llama), [{"role": "user", "content": "Hello"}], layer=4)
    with pytest.raises(DataError, match="This chat cannot be run: no_messages"):
        run_chat(str(llama), [], layer=2)
