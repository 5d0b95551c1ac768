"""What the model computes: no conversation sees another, and rows are those of a plain forward pass."""

import shutil
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from harvest.forward import Forward
from harvest.model import ModelSource, load_model
from harvest.units import Piece
from shared.errors import RecipeError
from tests import tiny

CPU = torch.device("cpu")
models = pytest.mark.parametrize("name", ["llama", "qwen2"])


@pytest.fixture
def folder(request, name):
    return request.getfixturevalue(name)


def tiny_forward(folder, layers):
    cut = load_model(ModelSource("tiny", None, folder), max(layers), "float32", "sdpa", CPU)
    return cut, Forward(cut, layers, CPU)


def batch_of(lengths, vocabulary, seed=0):
    """Pieces of a batch, longest first, with random ids, zeros where they are padded."""
    edges = np.cumsum([0, *lengths])
    pieces = [Piece(int(a), int(a), int(b)) for a, b in pairwise(edges)]
    ids = np.zeros((len(lengths), lengths[0]), np.int64)
    rng = np.random.default_rng(seed)
    for line, length in zip(ids, lengths, strict=True):
        line[:length] = rng.integers(5, vocabulary, length)
    return pieces, ids


def tensor_of(output):
    """What a decoder layer returns: a tensor, in a tuple in some versions of transformers."""
    return output[0] if isinstance(output, tuple) else output


def bits(captured, layer):
    return torch.cat([part.rows[layer] for part in captured]).view(torch.uint16).numpy()


@models
def test_changing_one_conversation_leaves_every_other_bit_identical(name, folder):
    _, forward = tiny_forward(folder, [0, 1, 2, 3])
    lengths = [40, 40, 33, 17, 9, 9, 2, 1]
    pieces, ids = batch_of(lengths, 400)
    before = forward.run(pieces, ids)
    for changed, length in enumerate(lengths):
        mutated = ids.copy()
        mutated[changed, :length] = (mutated[changed, :length] + 7) % 400
        after = forward.run(pieces, mutated)
        own = np.zeros(sum(lengths), bool)
        own[pieces[changed].start : pieces[changed].stop] = True
        for layer in range(4):
            same = (bits(before, layer) == bits(after, layer)).all(axis=1)
            assert same[~own].all()
            assert not same[own].any()  # or the test would show nothing


@models
def test_what_stands_in_the_padding_changes_nothing(name, folder):
    _, forward = tiny_forward(folder, [0, 3])
    pieces, ids = batch_of([40, 20, 3], 400)
    padded = ids.copy()
    padded[1, 20:] = padded[2, 3:37] = 9
    padded[2, 37:] = 11
    for layer in (0, 3):
        assert (bits(forward.run(pieces, ids), layer) == bits(forward.run(pieces, padded), layer)).all()


@models
def test_before_rounding_rows_equal_a_plain_forward_of_the_conversation_alone(name, folder):
    layers = [0, 1, 2, 3]
    cut, forward = tiny_forward(folder, layers)
    exact = {}
    for layer in layers:
        cut.layers[layer].register_forward_hook(
            lambda module, _, output, layer=layer: exact.update({layer: tensor_of(output)})
        )
    pieces, ids = batch_of([60, 41, 40, 12, 1], 400)
    forward.run(pieces, ids)
    plain = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    last = []
    plain.model.layers[3].register_forward_hook(lambda module, _, output: last.append(output))
    for line, piece in enumerate(pieces):
        with torch.inference_mode():
            states = plain(input_ids=torch.from_numpy(ids[line : line + 1, : len(piece)]), output_hidden_states=True)
        for layer in layers:
            wanted = states.hidden_states[layer + 1] if layer < 3 else last[-1]
            wanted = tensor_of(wanted)[0]
            difference = (exact[layer][line, : len(piece)] - wanted).norm(dim=-1)
            assert (difference / wanted.norm(dim=-1)).max() < 1e-5
        # hidden_states[-1] is after the final norm, and so is not the last layer's output.
        assert not torch.allclose(states.hidden_states[-1][0], exact[3][line, : len(piece)], rtol=0.1)


def assert_equal_after_rounding(rows, plain):
    """Design 4, Equality: at most one bf16 step, or 1e-5 of the row's norm."""
    rows, plain = rows.astype(np.float32), plain.astype(np.float32)
    rounded = torch.from_numpy(plain).bfloat16().float().numpy()
    step = np.exp2(np.floor(np.log2(np.maximum(np.abs(rounded), 1e-30))) - 7)
    bound = np.maximum(step, 1e-5 * np.linalg.norm(plain, axis=1, keepdims=True))
    assert (np.abs(rows - rounded) <= bound).all()


@models
def test_rows_in_the_cache_equal_a_plain_forward_of_each_conversation(name, folder, tmp_path, chat_file):
    cache = tiny.make_cache(tmp_path / "cache", folder, chat_file, layers=[1, 3], num_tokens=2048)
    plain = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    last = {}
    plain.model.layers[3].register_forward_hook(lambda module, _, output: last.update(x=output))
    there = np.zeros(cache.num_rows, bool)
    there[cache.rows(layer=1)] = True
    compared = 0
    for start, stop in zip(cache.conversation_offset, cache.conversation_offset[1:], strict=False):
        rows = np.arange(start, stop)[there[start:stop]]
        if not len(rows):
            continue
        with torch.inference_mode():
            states = plain(input_ids=torch.from_numpy(cache.token_id[None, start:stop].astype(np.int64)),
                           output_hidden_states=True)
        final = tensor_of(last["x"])
        for layer, wanted in ((1, states.hidden_states[2]), (3, final)):
            wanted = wanted.reshape(-1, wanted.shape[-1]).numpy()[rows - start]
            assert_equal_after_rounding(cache.layer(layer)[rows], wanted)
            norms = np.linalg.norm(cache.layer(layer)[rows].astype(np.float32), axis=1)
            assert np.allclose(cache.layer(layer).norm(rows), norms, rtol=1e-5)
        compared += len(rows)
    assert compared == there.sum() > 2048


class RunsOutOfMemory:
    """A model that computes, and then fails on the calls that are listed."""

    def __init__(self, model, failing):
        self.model, self.failing, self.calls = model, failing, 0

    def __call__(self, **inputs):
        self.calls += 1
        self.model(**inputs)
        if self.failing(self.calls, inputs["input_ids"]):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")


def test_a_batch_that_does_not_fit_is_halved_until_it_does(llama):
    _, forward = tiny_forward(llama, [0, 2])
    pieces, ids = batch_of([40, 31, 30, 20, 10], 400)
    whole = bits(forward.run(pieces, ids), 2)
    assert forward.num_halved == 0
    forward._model = RunsOutOfMemory(forward._model, lambda _, tokens: len(tokens) > 2)
    captured = forward.run(pieces, ids)
    assert forward.num_halved == 2
    assert [piece for part in captured for piece in part.pieces] == pieces
    halved = bits(captured, 2)
    a, b = (torch.from_numpy(x).view(torch.bfloat16).float() for x in (whole, halved))
    assert ((a - b).norm(dim=1) / a.norm(dim=1)).max() < 1e-2


def test_one_conversation_that_does_not_fit_says_how_to_cut_it(llama):
    _, forward = tiny_forward(llama, [0])
    forward._model = RunsOutOfMemory(forward._model, lambda _, tokens: tokens.shape[1] > 32)
    with pytest.raises(RecipeError, match=r"40 tokens does not fit.*harvest.max_length="):
        forward.run(*batch_of([40, 31], 400))


def test_the_record_tells_how_many_batches_were_halved(llama, chat_file, tmp_path, monkeypatch):
    failed = []
    run = Forward._run

    def once(self, batch, ids):
        if len(batch) > 1 and not failed:
            failed.append(batch)
            raise torch.OutOfMemoryError("no memory")
        return run(self, batch, ids)

    monkeypatch.setattr(Forward, "_run", once)
    cache = tiny.make_cache(tmp_path / "cache", llama, chat_file, num_tokens=1024)
    halved = [record.made_with["batches_halved"] for record in cache.records(0).values()]
    assert sum(halved) == 1


def test_layers_that_the_weights_lack_are_never_drawn_at_random(llama, tmp_path):
    """transformers does so with a warning; they would be harvested as if they were the model's."""
    folder = Path(shutil.copytree(llama, tmp_path / "model"))
    weights = load_file(folder / "model.safetensors")
    del weights["model.layers.2.mlp.up_proj.weight"]
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    tiny_forward(folder, [1])  # what lies deeper is not looked for
    with pytest.raises(RecipeError, match=r"lack 1 tensors .* layers\.2\.mlp\.up_proj\.weight"):
        tiny_forward(folder, [2])


def test_an_early_exit_model_holds_no_later_layer_and_no_head(llama):
    cut, _ = tiny_forward(llama, [1])
    assert len(cut.layers) == 2
    assert not [name for name, _ in cut.model.named_parameters() if "lm_head" in name or "layers.2" in name]
