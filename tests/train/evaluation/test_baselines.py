"""Baselines: each against its definition in float64 over whole arrays, and as files beside the SAEs."""

import json

import numpy as np
import pytest
import torch

from shared.errors import IdentityError
from tests.train import tiny_run
from train.evaluation.baselines import (
    Moments,
    fit_baselines,
    measure_moments,
    pca,
    random_directions,
    read_baselines,
    sample_rows,
    token_mean,
)
from train.evaluation.evaluate import evaluate, evaluate_saes

RECIPE = {"train": tiny_run.RECIPE["train"] | {"num_tokens": 64 * 20}, "sae": tiny_run.RECIPE["sae"][:1]}


@pytest.fixture(scope="module")
def fitted():
    """A cache of tokens from a vocabulary of 50, its training rows, and moments over the ids 0 to 59."""
    cache = tiny_run.cache()
    cache.token_id = np.random.default_rng(0).integers(0, 50, cache.num_rows).astype(np.int32)
    rows = cache.rows(split="train")[::2]
    x = cache.layer(3)[rows].astype(np.float64)
    return cache, rows, x, measure_moments(cache, 3, rows, np.arange(60))


def test_streamed_moments_are_those_of_the_whole_array(fitted):
    cache, rows, x, moments = fitted
    assert moments.num_rows == len(rows)
    np.testing.assert_allclose(moments.mean, x.mean(0), rtol=1e-12)
    np.testing.assert_allclose(moments.covariance, np.cov(x.T, bias=True), rtol=1e-12, atol=1e-10)
    ids = cache.token_id[rows]
    for token in range(60):
        expected = x[ids == token].mean(0) if token < 50 else x.mean(0)  # the last ten were never met
        np.testing.assert_allclose(moments.token_means[token], expected, rtol=1e-12, atol=1e-12)
    assert moments.token_counts.tolist() == np.bincount(ids, minlength=60).tolist()


@pytest.mark.parametrize("k", [1, 5, 24])
def test_pca_leaves_the_sum_of_the_other_eigenvalues(fitted, k):
    _, _, x, moments = fitted
    x_hat, latents = pca(moments, k)(torch.from_numpy(x), torch.zeros(len(x)))
    assert latents.shape == (len(x), k)
    centred = x - x.mean(0)
    left = np.linalg.svd(centred, compute_uv=False)[k:]
    assert float((torch.from_numpy(x) - x_hat).square().sum()) == pytest.approx((left ** 2).sum(), rel=1e-9, abs=1e-9)


def test_the_mean_of_a_token_is_given_to_its_rows_and_the_mean_of_all_to_unknown_ids():
    moments = Moments(9, torch.tensor([5.0]), torch.eye(1), torch.tensor([2.0, 7.0]), torch.tensor([[1.0], [2.0]]))
    x_hat, latents = token_mean(moments, np.array([3, 8]))(torch.zeros(4, 1), torch.tensor([8, 3, 5, 9]))
    assert x_hat.flatten().tolist() == [2.0, 1.0, 5.0, 5.0]
    assert latents is None


def test_random_directions_are_the_formula_with_the_gain_of_least_squares(fitted):
    cache, rows, x, moments = fitted
    sae = random_directions(cache, 3, rows, moments.mean, 48, 3)
    assert torch.allclose(sae.W_dec.norm(dim=1), torch.ones(48))
    W_dec, centred = sae.W_dec.double().numpy(), x - x.mean(0)
    z = centred @ W_dec.T
    kept = np.where(z >= np.sort(z, axis=1)[:, -3:-2], np.maximum(z, 0), 0)
    gain = (centred * (kept @ W_dec)).sum() / ((kept @ W_dec) ** 2).sum()
    expected = x.mean(0) + gain * kept @ W_dec
    x_hat = sae(torch.from_numpy(x).float()).double().numpy()
    np.testing.assert_allclose(x_hat, expected, rtol=1e-4, atol=1e-4)  # float32 products
    assert torch.equal(random_directions(cache, 3, rows, moments.mean, 48, 3).W_enc, sae.W_enc)


def test_a_sample_of_training_rows_is_whole_blocks_and_always_the_same():
    mask = np.random.default_rng(0).random(5000) < 0.7
    rows = sample_rows(mask, 1000)
    assert 800 < len(rows) <= 1000
    assert mask[rows].all()
    for block in np.unique(rows // 128):
        assert np.isin(np.flatnonzero(mask[block * 128 : (block + 1) * 128]) + block * 128, rows).all()
    assert np.array_equal(sample_rows(mask, 1000), rows)
    assert np.array_equal(sample_rows(mask, 5000), np.flatnonzero(mask))


def evaluate_baselines(cache, folders):
    return evaluate(cache, 3, fit_baselines(cache, 3, folders, folders[0].parent))


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory):
    """An SAE and its baselines, of a cache where token ids repeat."""
    cache, folders = tiny_run.train(tmp_path_factory.mktemp("runs"), RECIPE)
    cache.token_id = cache.token_id % 50
    [sae] = evaluate_saes(cache, 3, folders)
    return cache, folders, sae, evaluate_baselines(cache, folders)


def test_baselines_lie_beside_the_saes_with_the_same_figures(evaluated):
    cache, folders, sae, baselines = evaluated
    kinds = {one["architecture"]: one for one in baselines}
    assert list(kinds) == ["identity", "token_mean", "pca", "random"]
    for one in baselines:
        folder = folders[0].parent / "baselines" / one["sae"]
        assert json.loads((folder / "eval.json").read_text()) == one
        assert (folder / "eval_conversations.safetensors").exists()
        assert one["subsets"].keys() == sae["subsets"].keys()
        for name, figures in one["subsets"].items():
            assert figures.keys() == sae["subsets"][name].keys()
            assert figures["num_rows"] == sae["subsets"][name]["num_rows"]
    assert sorted(one["sae"] for one in read_baselines(cache, 3, folders[0].parent)) == sorted(
        one["sae"] for one in baselines)


def test_identity_scores_1_and_pca_and_random_have_the_number_of_latents_of_the_sae(evaluated):
    kinds = {one["architecture"]: one["subsets"]["content"] for one in evaluated[3]}
    assert kinds["identity"]["explained_variance"] == 1
    assert kinds["identity"]["mse"] == 0
    assert kinds["identity"]["l0"] is kinds["token_mean"]["l0"] is None
    assert "l0" not in kinds["identity"]["intervals"]
    assert kinds["pca"]["l0"] == kinds["random"]["l0"] == 3
    assert 0 < kinds["pca"]["explained_variance"] < 1
    assert 0 < kinds["random"]["explained_variance"] < 1


def test_the_file_path_of_a_baseline_gives_brute_force_figures(evaluated):
    cache, _, _, baselines = evaluated
    held_out = cache.rows(split="held_out")
    [found] = [one for one in baselines if one["architecture"] == "token_mean"]
    train = cache.rows(split="train")
    train = train[cache.token_class[train] != 0]  # FIRST is dropped by the policy; no norm is over ten times the median
    assert found["baseline"]["fit_rows"] == found["baseline"]["training_rows"] == len(train)
    x, x_train = (cache.layer(3)[rows].astype(np.float64) for rows in (held_out, train))
    x_hat = np.stack([x_train[cache.token_id[train] == token].mean(0) for token in cache.token_id[held_out]])
    variance = ((x - x.mean(0)) ** 2).sum()
    assert found["subsets"]["all"]["explained_variance"] == pytest.approx(1 - ((x - x_hat) ** 2).sum() / variance,
                                                                          rel=1e-9)


def test_baselines_evaluated_again_are_the_same_bytes_and_more_held_out_rows_make_them_old(evaluated):
    cache, folders, _, baselines = evaluated
    names = [folders[0].parent / "baselines" / one["sae"] / file for one in baselines
             for file in ("eval.json", "eval_sums.safetensors", "eval_conversations.safetensors")]
    before = [path.read_bytes() for path in names]
    evaluate_baselines(cache, folders)
    assert [path.read_bytes() for path in names] == before
    cache.units = (0, 1, 2)
    try:
        assert read_baselines(cache, 3, folders[0].parent) == []
    finally:
        cache.units = (0, 1, 2, 3)


def test_baselines_of_an_sae_of_another_cache_are_refused(evaluated):
    cache, folders, _, _ = evaluated
    cache.cache_id, kept = "e" * 32, cache.cache_id
    try:
        with pytest.raises(IdentityError, match="another cache"):
            evaluate_baselines(cache, folders)
    finally:
        cache.cache_id = kept
