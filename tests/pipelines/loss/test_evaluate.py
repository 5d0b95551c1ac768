"""The spliced loss against transformers with hooks, one conversation at a time."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from pipelines.loss.evaluate import evaluate_loss
from pipelines.loss.figures import SCOPES, SUMS
from pipelines.loss.run import Wanted, measure_loss
from pipelines.loss.streams import read_stream
from tests import tiny
from tests.pipelines.loss.conftest import LAYER
from train.evaluation.files import conversation_keys

TOKENS = 700


def shrunk(x, token_id):
    return 0.8 * x + 0.01 * token_id[:, None]


def by_hooks(plain, cache, stream, splice, first):
    """CE of each predicted token, clean and with ``splice(rows, ids)`` in the place of the layer's output, and KL, all
    ``[predictions]`` in the order of the stream; a conversation at a time through the whole model.

    The rows are the cache's, which are rounded to bfloat16.
    """
    ce, ce_spliced, kl = [], [], []
    for start, stop in zip(stream.offset[:-1], stream.offset[1:], strict=True):
        ids = torch.from_numpy(stream.token_id[start:stop])[None]
        rows = torch.from_numpy(cache.layer(LAYER)[stream.row[start:stop]].astype(np.float32))[None]
        changed = splice(rows[0], ids[0])[None]
        if not first:
            changed = torch.cat([rows[:, :1], changed[:, 1:]], 1)
        p, q = (run_with(plain, ids, each) for each in (rows, changed))
        place = torch.arange(len(p) - 1)
        ce.append(-p[place, ids[0, 1:]])
        ce_spliced.append(-q[place, ids[0, 1:]])
        kl.append((p.exp() * (p - q)).sum(1)[:-1])
    return {"ce": torch.cat(ce), "ce_spliced": torch.cat(ce_spliced), "kl": torch.cat(kl)}


@torch.no_grad()
def run_with(plain, ids, rows):
    """Log-probabilities ``[tokens, vocabulary]``, float64, with ``rows`` as the layer's output."""
    handle = plain.model.layers[LAYER].register_forward_hook(lambda *_: rows)
    logits = plain(input_ids=ids, use_cache=False).logits[0]
    handle.remove()
    return torch.log_softmax(logits.double(), 1)


def of_scope(stream, name, values):
    """The mean over the predictions of a scope."""
    predicting = np.flatnonzero(stream.predicts)
    chosen = np.ones(len(predicting), bool)
    if SCOPES[name].assistant:
        chosen &= stream.assistant[predicting + 1]
    if not SCOPES[name].first:
        chosen &= ~stream.first[predicting]
    return float(values[torch.from_numpy(chosen)].mean()), int(chosen.sum())


@pytest.fixture
def stream(fast):
    return read_stream(fast, LAYER, "conversations", TOKENS, lambda: tiny.make_tokenizer("llama3"))


def test_every_figure_is_that_of_hooks_on_the_whole_model(fast, model, plain, subject, stream):
    [found] = measure_loss(fast, LAYER, [subject(shrunk)], model, Wanted(TOKENS))
    rows = fast.layer(LAYER)[stream.row[~stream.first]].astype(np.float64)
    mean = torch.from_numpy(rows.mean(0)).float()
    splices = {"spliced": shrunk, "zero": lambda x, _: torch.zeros_like(x), "mean": lambda x, _: mean.expand_as(x)}
    for name, scope in SCOPES.items():
        figures = found["streams"]["conversations"][name]
        expected = {}
        for kind, splice in splices.items():
            sums = by_hooks(plain, fast, stream, splice, scope.first)
            expected["ce"], number = of_scope(stream, name, sums["ce"])
            expected[f"ce_{kind}"], _ = of_scope(stream, name, sums["ce_spliced"])
            expected["kl" if kind == "spliced" else f"kl_{kind}"], _ = of_scope(stream, name, sums["kl"])
        assert figures["num_tokens"] == number > 50
        for key, value in expected.items():
            assert figures[key] == pytest.approx(value, abs=1e-4), (name, key)  # float32, in batches
        delta = figures["ce_spliced"] - figures["ce"]
        assert figures["delta_ce"] == pytest.approx(delta)
        assert figures["delta_ce_percent"] == pytest.approx(100 * delta / figures["ce"])
        for ablation in ("zero", "mean"):
            damage = figures[f"ce_{ablation}"] - figures["ce"]
            recovered = figures[f"ce_recovered_{ablation}"]
            assert recovered == (pytest.approx(1 - delta / damage) if damage > 0 else None)


def test_a_perfect_reconstruction_loses_nothing(fast, model, subject):
    [found] = measure_loss(fast, LAYER, [subject(lambda x, _: x)], model, Wanted(TOKENS, ("conversations", "blocks")))
    for scopes in found["streams"].values():
        for figures in scopes.values():
            assert figures["kl"] == figures["delta_ce"] == figures["delta_ce_percent"] == 0
            assert figures["ce_recovered_mean"] in {1, None}
            assert figures["intervals"]["kl"] == [0, 0]


def test_starting_from_the_cache_gives_what_the_whole_model_gives(fast, block, model, subject):
    """Up to the rounding of the rows to bfloat16, 2^-9 of each value: 0.01 nats of about 7."""
    for number, (cache, own) in enumerate(((fast, "conversations"), (block, "blocks"))):
        wanted = Wanted(TOKENS, ("conversations", "blocks"))
        [found] = measure_loss(cache, LAYER, [subject(shrunk, str(number))], model, wanted)
        assert {name for name, rows in found["compute"]["rows"].items() if rows == "cache"} == {own}
        for plain in found["compute"]["plain"].values():
            assert plain["num_tokens"] >= 200
            assert plain["ce_from_rows"] == pytest.approx(plain["ce_plain"], abs=0.01)


def test_figures_of_a_stream_are_the_same_from_a_cache_that_holds_the_other_one(fast, block, model, subject):
    """Conversations of a cache of blocks are run through the model's first layers: in float32, in other batches, so a
    row may be rounded to the next bfloat16."""
    wanted = Wanted(TOKENS)
    [ours], [theirs] = (measure_loss(cache, LAYER, [subject(shrunk, cache.path.parent.name)], model, wanted)
                        for cache in (fast, block))
    for name in SCOPES:
        one, other = (found["streams"]["conversations"][name] for found in (ours, theirs))
        assert one["num_tokens"] == other["num_tokens"]
        for key in ("ce", "ce_spliced", "kl", "ce_mean"):
            assert one[key] == pytest.approx(other[key], abs=2e-3)


def test_an_sae_has_the_same_files_alone_and_among_others_and_when_measured_again(fast, model, subject):
    one, other = subject(shrunk, "one"), subject(lambda x, _: 0.5 * x, "other")
    names = ("eval_loss.json", "eval_loss_conversations.safetensors")
    measure_loss(fast, LAYER, [one], model, Wanted(TOKENS))
    alone = [(one.folder / name).read_bytes() for name in names]
    for _ in range(2):
        measure_loss(fast, LAYER, [other, one], model, Wanted(TOKENS))
        assert [(one.folder / name).read_bytes() for name in names] == alone


def test_no_conversation_has_a_part_in_anothers_figures(fast, model, subject, stream):
    """All of one conversation is changed, its ids and its rows: the sums of all others stay bit for bit."""
    one = subject(shrunk)
    sums = []
    for changed in (False, True):
        start, stop = stream.offset[1:3]
        if changed:
            ids, rows = stream.token_id.copy(), stream.row.copy()
            ids[start:stop] = ids[start:stop][::-1]
            rows[start:stop] = rows[start:stop][::-1]
            stream = replace(stream, token_id=ids, row=rows)
        # The mean of all rows stays the same, but for the order of its sum: compared is what does not depend on it.
        evaluate_loss(fast, LAYER, [one], model.split, [stream], model.device, {})
        sums.append(load_file(one.folder / "eval_loss_conversations.safetensors"))
    others = np.arange(len(stream.conversations)) != 1
    for name in SUMS:
        for scope in SCOPES:
            before, after = (each[f"conversations.{scope}.{name}"] for each in sums)
            if "mean" not in name:
                assert np.array_equal(before[others], after[others])
            if name == "ce":
                assert before[1] != after[1]


def test_sums_by_conversation_add_up_to_the_figures_and_carry_the_keys_of_conversations(fast, model, subject):
    one = subject(shrunk)
    [found] = measure_loss(fast, LAYER, [one], model, Wanted(TOKENS, ("conversations", "blocks")))
    sums = load_file(one.folder / "eval_loss_conversations.safetensors")
    assert sums["key"].dtype == np.uint64
    assert np.array_equal(sums["key"], conversation_keys(fast)[sums["conversation"]])
    assert len(sums["key"]) == found["num_conversations"]
    assert json.loads((one.folder / "eval_loss.json").read_text()) == found
    for stream, scopes in found["streams"].items():
        for scope, figures in scopes.items():
            n = sums[f"{stream}.{scope}.n"].sum()
            assert n == figures["num_tokens"]
            for name in SUMS[1:]:
                assert sums[f"{stream}.{scope}.{name}"].sum() / n == pytest.approx(figures[name], rel=1e-12)
