"""Warm start: another run begins with what a finished SAE does, in its own units, and says so."""

import pytest
import torch

from shared.digests import file_digest
from shared.errors import RecipeError
from shared.sealed_json import read_sealed
from tests.train import tiny_run
from tests.train.export.layouts import write_saelens
from tests.train.fake_cache import planted
from tests.train.test_run import weights
from train.architectures import ARCHITECTURES
from train.architectures.base import RunLength
from train.architectures.batchtopk import BatchTopKSAE
from train.config import plan_saes, read_train_config, sae_tables
from train.export import load_sae
from train.statistics import InputStatistics
from train.warm_start import read_source, start_from, unfold

TRAIN = tiny_run.RECIPE["train"] | {"num_tokens": 64 * 40}


def sparsity(name):
    return {"k": 3} if "k" in ARCHITECTURES[name].Config.model_fields else {"l0": 3.0}


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """A finished SAE of every architecture, by name."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    recipe = {"train": TRAIN, "sae": [{"architecture": name, "d_sae": 40, **sparsity(name)} for name in ARCHITECTURES]}
    _, folders = tiny_run.train(tmp_path_factory.mktemp("sources"), recipe)
    torch.set_num_threads(before)
    return dict(zip(ARCHITECTURES, folders, strict=True))


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_it_begins_with_the_sources_latents_and_reconstructions_in_its_own_units(sources, name):
    rows, _ = planted(256, d_in=24)
    raw = torch.from_numpy(rows * 3 - 2)
    new = InputStatistics(torch.linspace(-1, 1, 24), 0.37)
    source = load_sae(sources[name])
    sae = ARCHITECTURES[name](ARCHITECTURES[name].Config(d_sae=40, **sparsity(name)), 24, RunLength(10, 64))
    start_from(sae, str(sources[name]), read_source(str(sources[name]), "[[sae]]"), new)
    if isinstance(sae, BatchTopKSAE):  # its threshold comes from batches, and this one has seen none
        sae.threshold_calibrated.copy_(unfold(source, new)["threshold"][0])
    latents = source.encode(raw)
    assert (latents > 0).any()
    # fp32 products of width 24 on either side, of rows that are 0.37 times as large on one
    torch.testing.assert_close(sae.encode(new.apply(raw)), latents * 0.37, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(sae(new.apply(raw)), new.apply(source(raw)), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["standard", "gated", "jumprelu"])
def test_a_penalty_begins_with_the_coefficient_that_the_source_ended_with(sources, name):
    ended = read_sealed(sources[name] / "run.json")["resolved"]["sparsity_coefficient"]
    source = read_source(str(sources[name]), "[[sae]]")
    sae = ARCHITECTURES[name](ARCHITECTURES[name].Config(d_sae=40, l0=3.0), 24, RunLength(10, 64))
    assert float(sae.controller.coefficient()) == 1.0
    start_from(sae, str(sources[name]), source, InputStatistics(torch.zeros(24), 1.0))
    assert float(sae.controller.coefficient()) == pytest.approx(ended, rel=1e-6)
    other = ARCHITECTURES["standard"](ARCHITECTURES["standard"].Config(d_sae=40, l0=3.0), 24, RunLength(10, 64))
    start_from(other, str(sources["jumprelu"]), read_source(str(sources["jumprelu"]), "[[sae]]"),
               InputStatistics(torch.zeros(24), 1.0))
    assert float(other.controller.coefficient()) == 1.0  # another kind of penalty


@pytest.mark.parametrize("source", ["standard", "jumprelu", "batchtopk"])
def test_a_gated_one_passes_on_what_a_source_without_gates_gave(sources, source):
    rows, _ = planted(256, d_in=24)
    raw = torch.from_numpy(rows * 3 - 2)
    new = InputStatistics(torch.linspace(-1, 1, 24), 0.37)
    sae = ARCHITECTURES["gated"](ARCHITECTURES["gated"].Config(d_sae=40, l0=3.0), 24, RunLength(10, 64))
    sae.start_from(unfold(load_sae(sources[source]), new))
    latents = load_sae(sources[source]).encode(raw)
    torch.testing.assert_close(sae.encode(new.apply(raw)), latents * 0.37, rtol=1e-4, atol=1e-4)


def foreign(folder, **config):
    """A JumpReLU of SAELens's layout, its decoder's rows of all lengths, made for another model."""
    generator = torch.Generator().manual_seed(5)
    tensors = {"W_enc": torch.randn(24, 40, generator=generator) / 4, "b_enc": torch.randn(40, generator=generator) / 4,
               "W_dec": torch.randn(40, 24, generator=generator), "b_dec": torch.randn(24, generator=generator),
               "threshold": torch.rand(40, generator=generator)}
    return write_saelens(folder, tensors, architecture="jumprelu", d_in=24, d_sae=40,
                         hook_name="blocks.9.hook_resid_post", model_name="org/base", **config)


def test_it_begins_with_an_sae_that_was_made_elsewhere(tmp_path):
    folder = foreign(tmp_path / "base")
    raw = torch.randn(200, 24, generator=torch.Generator().manual_seed(1)) * 3
    new = InputStatistics(torch.linspace(-1, 1, 24), 0.37)
    source = load_sae(folder)
    sae = ARCHITECTURES["jumprelu"](ARCHITECTURES["jumprelu"].Config(d_sae=40, l0=3.0), 24, RunLength(10, 64))
    start_from(sae, str(folder), read_source(str(folder), "[[sae]]"), new)
    torch.testing.assert_close(sae.W_dec.norm(dim=1), torch.ones(40))
    torch.testing.assert_close(sae(new.apply(raw)), new.apply(source(raw)), rtol=1e-4, atol=1e-4)
    assert ((sae.encode(new.apply(raw)) > 0) == (source.encode(raw) > 0)).all()


def test_a_run_that_starts_elsewhere_says_from_what_and_checks_it_again(tmp_path):
    folder = foreign(tmp_path / "base")
    recipe = {"train": TRAIN, "sae": [{"architecture": "jumprelu", "l0": 3.0, "warm_start": str(folder)}]}
    tiny_run.stopped_at(25, tmp_path / "runs", recipe)
    _, [sae] = tiny_run.train(tmp_path / "runs", recipe)
    run = read_sealed(sae / "run.json")
    assert run["kind"] == "warm_start"
    assert sae.name.startswith("jumprelu-40-")
    started = run["warm_start"]
    assert (started["folder"], started["layer"], started["cache_id"]) == (str(folder), 9, None)
    assert started["made_for"]["model"] == "org/base"
    assert started["weights"] == file_digest(folder / "sae_weights.safetensors")
    other = foreign(tmp_path / "other", normalize_activations="layer_norm")
    with pytest.raises(RecipeError, match=r"holds no finished SAE.*normalize_activations"):
        tiny_run.train(tmp_path / "runs", {"train": TRAIN, "sae": [{"architecture": "topk", "warm_start": str(other)}]})


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_first_batch_sets_nothing_that_the_source_has_set(sources, name):
    sae = ARCHITECTURES[name](ARCHITECTURES[name].Config(d_sae=40, **sparsity(name)), 24, RunLength(10, 64))
    given = unfold(load_sae(sources[name]), InputStatistics(torch.zeros(24), 1.0))
    sae.start_from(given)
    assert all(torch.equal(parameter, given[which]) for which, parameter in sae.named_parameters() if which != "theta")
    before = {which: parameter.clone() for which, parameter in sae.named_parameters()}
    sae.loss(torch.randn(64, 24, generator=torch.Generator().manual_seed(0)), 0)
    for which, parameter in sae.named_parameters():
        assert torch.equal(parameter, before[which]), which


def test_a_threshold_that_the_source_lacks_starts_as_it_always_does(sources):
    sae = ARCHITECTURES["jumprelu"](ARCHITECTURES["jumprelu"].Config(d_sae=40, l0=3.0), 24, RunLength(10, 64))
    sae.start_from(unfold(load_sae(sources["topk"]), InputStatistics(torch.zeros(24), 1.0)))
    sae.loss(torch.randn(64, 24, generator=torch.Generator().manual_seed(0)), 0)
    assert (sae.threshold > 0).any()


def test_a_run_says_where_it_started_and_the_source_is_part_of_its_name(sources, tmp_path):
    tables = [{"architecture": "topk", "k": 3, "warm_start": [str(sources["topk"]), str(sources["batchtopk"])]},
              {"architecture": "topk", "k": 3, "d_sae": 40}]
    _, folders = tiny_run.train(tmp_path, {"train": TRAIN, "sae": tables})
    runs = [read_sealed(folder / "run.json") for folder in folders]
    assert [run["kind"] for run in runs] == ["warm_start", "warm_start", "from_scratch"]
    assert len({folder.name for folder in folders}) == 3
    assert {folder.name.rsplit("-", 1)[0] for folder in folders} == {"topk-40-k3-s0"}  # the source's width
    for run, name in zip(runs, ("topk", "batchtopk"), strict=False):
        source = read_sealed(sources[name] / "run.json")
        assert run["warm_start"] == run["recipe"]["warm_start"] | {"folder": str(sources[name])}
        assert run["warm_start"]["sae"] == source["name"]
        assert run["warm_start"]["weights"] == source["files"]["sae_weights.safetensors"]
    assert runs[2]["warm_start"] is None
    assert runs[0]["l0_train"] == pytest.approx(3, rel=0.2)


def test_where_the_source_lies_is_no_part_of_the_recipe(sources, tmp_path):
    moved = tmp_path / "elsewhere"
    moved.symlink_to(sources["topk"])
    plans = [plan_saes(sae_tables({"sae": [{"warm_start": str(path)}]}, None), read_train_config({}), 3, 24)
             for path in (sources["topk"], moved)]
    assert plans[0][0].name == plans[1][0].name


def test_two_seeds_of_one_start_would_be_the_same_sae(sources):
    def plans(**fields):
        return plan_saes(sae_tables({"sae": [{"warm_start": str(sources["topk"]), "k": 3, **fields}]}, None),
                         read_train_config({}), 3, 24)

    with pytest.raises(RecipeError, match=r"\(seed = 1\)\.seed: a warm start takes its weights.*train\.data_seed"):
        plans(seed=[0, 1])
    assert len(plans(seed=1, lr=[1e-3, 2e-3])) == 2


def test_killed_and_gone_on_with_it_has_the_same_bits(sources, tmp_path):
    recipe = {"train": TRAIN, "sae": [{"architecture": "jumprelu", "l0": 3.0, "warm_start": str(sources["jumprelu"])}]}
    _, expected = tiny_run.train(tmp_path / "a", recipe)
    tiny_run.stopped_at(25, tmp_path / "b", recipe)
    _, folders = tiny_run.train(tmp_path / "b", recipe)
    assert weights(folders) == weights(expected)
