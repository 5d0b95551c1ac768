"""Densities and top contexts are those of the SAE on the cache's rows."""

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from pipelines.contexts import ChosenLatent, Firings, choose_latents, count_firings, held_out_rows, show_latents
from pipelines.runs import read_runs
from shared.format.tokens import TokenClass
from train.export import load_sae


@pytest.fixture(scope="module")
def described(demo):
    """Cache, SAE, rows and firings of the demo's BatchTopK SAE."""
    cache = demo.cache()
    run = read_runs([folder for folder in demo.folders if folder.name.startswith("batchtopk")])[0]
    sae = load_sae(run.folder)
    rows = held_out_rows(cache, 2, run.record)
    return cache, sae, rows, count_firings(cache, 2, sae, rows), run


def test_firings_are_those_of_the_evaluation(described):
    _, _, rows, firings, run = described
    assert run.evaluation["latents"]["dead_held_out_rows"] == len(rows)
    np.testing.assert_array_equal(firings.total, load_file(run.folder / "eval_sums.safetensors")["fired"])
    assert firings.class_rows.sum() == len(rows)


def test_contexts_show_the_strongest_activation_of_different_conversations(described):
    cache, sae, rows, firings, _ = described
    latent = int(np.argmax(firings.total))
    shown = show_latents(cache, 2, sae, firings, [ChosenLatent(latent, "the densest")])[0]
    x = torch.from_numpy(cache.layer(2)[rows].astype(np.float32))
    own = sae.encode(x)[:, latent].numpy()
    assert shown.num_firings == (own > 0).sum()
    assert shown.density == pytest.approx((own > 0).mean())
    assert sum(share for _, share in shown.classes) == pytest.approx(1)
    assert shown.contexts[0].activation == pytest.approx(own.max(), rel=1e-5)
    conversations = [context.conversation for context in shown.contexts]
    assert len(set(conversations)) == len(conversations) == 5
    for context in shown.contexts:
        peak, = (piece for piece in context.pieces if piece.is_peak)
        assert peak.activation == pytest.approx(context.activation, rel=1e-6)
        start = cache.conversation_offset[context.conversation]
        assert TokenClass[context.token_class.upper()] == cache.token_class[start + context.position]


def test_a_context_stays_in_its_conversation(described):
    cache, sae, _, firings, _ = described
    chosen = [ChosenLatent(int(latent), "") for latent in np.argsort(-firings.total)[:8]]
    for shown in show_latents(cache, 2, sae, firings, chosen):
        for context in shown.contexts:
            assert sum(piece.text.startswith("<|begin_of_text|>") for piece in context.pieces) <= 1
            assert all(0 <= piece.strength <= 1 for piece in context.pieces)


def test_no_two_contexts_have_equal_tokens(described):
    cache, sae, _, firings, _ = described
    template = firings.by_class[TokenClass.TEMPLATE_OTHER]  # "The day is: ...", the same in every conversation
    latent = int(np.argmax(template / np.maximum(firings.total, 1)))
    shown = show_latents(cache, 2, sae, firings, [ChosenLatent(latent, "")])[0]
    texts = ["".join(piece.text for piece in context.pieces) for context in shown.contexts]
    assert shown.num_conversations > 1
    assert len(set(texts)) == len(texts) >= 1


def firings(by_class, rows):
    table = np.zeros((len(TokenClass), len(next(iter(by_class.values())))), np.int64)
    sizes = np.zeros(len(TokenClass), np.int64)
    for kind, counts in by_class.items():
        table[kind] = counts
        sizes[kind] = rows
    return Firings(np.arange(sizes.sum()), table, sizes)


def test_latents_are_spread_over_density_and_the_dead_are_left_out():
    counts = np.array([0, 9, *range(10, 110)])
    chosen = choose_latents(firings({TokenClass.TURN_END: counts}, 1000), num_spread=5, num_assistant=3)
    assert [item.latent for item in chosen] == [12, 32, 52, 72, 92]
    assert chosen[0].reason == "denser than 10% of the latents alive"


def test_the_most_specific_to_the_assistant_have_the_largest_ratio_of_rates():
    user = np.array([40, 10, 3, 0, 30, 0])
    assistant = np.array([40, 30, 60, 5, 10, 90])
    template = np.array([0, 0, 0, 0, 0, 200])
    counts = {TokenClass.USER: user, TokenClass.ASSISTANT: assistant, TokenClass.DEFAULT_SYSTEM: template}
    chosen = choose_latents(firings(counts, 1000), 0, 3)
    # Latent 5 fires most on the template, latent 3 has too few firings, latent 4 prefers the user, latent 0 neither.
    assert [item.latent for item in chosen] == [2, 1]
    assert chosen[0].reason == "17.3 times as often on assistant text as on user text"


def test_nothing_alive_gives_nothing_to_show(described):
    cache, sae, *_ = described
    none = firings({TokenClass.USER: np.zeros(4, np.int64)}, 10)
    assert choose_latents(none) == []
    assert show_latents(cache, 2, sae, none, []) == []
