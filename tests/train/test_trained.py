"""A finished SAE, opened as it was trained, has the gradients that its next step would have had."""

import copy
import json

import pytest
import torch

from shared.sealed_json import read_sealed, write_sealed
from tests.train import tiny_run
from tests.train.fake_cache import planted
from train import finish
from train.statistics import InputStatistics
from train.trained import COEFFICIENT, open_trained

RECIPE = {
    "train": tiny_run.RECIPE["train"],
    "sae": [*tiny_run.RECIPE["sae"],
            {"architecture": "standard", "d_sae": 48, "l1_coefficient": 0.3, "coefficient_warmup": 0.5},
            {"architecture": "jumprelu", "d_sae": 48, "loss": "step", "sparsity_coefficient": 0.02,
             "threshold_init": 0.1, "bandwidth": 0.2, "init": "kaiming"}]}
"""Every architecture, penalties that follow an L0 and fixed ones."""

NAMES = range(len(RECIPE["sae"]))


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Folders of finished SAEs, and each with its statistics as it was when it was written."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    kept = []
    with pytest.MonkeyPatch.context() as patch:
        write = finish.write_sae

        def keep(folder, sae, statistics, metadata):
            kept.append((copy.deepcopy(sae), statistics))
            write(folder, sae, statistics, metadata)

        patch.setattr(finish, "write_sae", keep)
        cache, folders = tiny_run.train(tmp_path_factory.mktemp("runs"), RECIPE)
    torch.set_num_threads(before)
    return cache, folders, kept


def expected_gradients(sae, statistics, raw):
    """Plain autograd of the training loss, without the part along the decoder's rows; nothing counts as silent."""
    sae.tokens_since_fired.zero_()
    sae.prepare(128)  # a step at which AuxK looks anew at what is silent
    sae.loss(statistics.apply(raw), 128).total.backward()
    found = {("threshold" if name == "theta" else name): parameter.grad.clone()
             for name, parameter in sae.named_parameters()}
    W_dec = sae.W_dec.detach()
    found["W_dec"] -= torch.einsum("ij,ij->i", found["W_dec"], W_dec)[:, None] * W_dec
    sae.zero_grad()
    return found


@pytest.fixture(scope="module")
def raw():
    rows, _ = planted(128, d_in=24, seed=3)
    return torch.from_numpy(rows * 7 + 1).bfloat16()


@pytest.mark.parametrize("number", NAMES)
def test_its_gradients_are_those_of_the_sae_that_was_written(trained, raw, number):
    cache, folders, kept = trained
    opened = open_trained(folders[number], lambda record: cache)
    expected = expected_gradients(*kept[number], raw)
    found = opened.gradients(raw)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        # Folded into raw units and back in float32: biases of 10 are rounded by 1e-6, pre-activations sums of 24.
        torch.testing.assert_close(found[name], value, rtol=1e-3, atol=1e-3 * float(value.abs().max()), msg=name)
        assert value.abs().max() > 0, name


@pytest.mark.parametrize("number", NAMES)
def test_measuring_changes_nothing(trained, raw, number):
    cache, folders, _ = trained
    opened = open_trained(folders[number], lambda record: cache)
    before = {name: value.clone() for name, value in opened.sae.named_parameters()}
    first = opened.gradients(raw)
    again = opened.gradients(raw)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert all(torch.equal(before[name], value) for name, value in opened.sae.named_parameters())


def test_the_penalty_has_the_coefficient_of_the_end_of_training(trained):
    cache, folders, kept = trained
    for folder, (sae, _) in zip(folders, kept, strict=True):
        opened = open_trained(folder, lambda record: cache)
        controller = getattr(sae, "controller", None)
        if controller is None:
            assert (opened.coefficient, opened.coefficient_from) == (None, None)
        else:
            assert opened.coefficient == pytest.approx(float(controller.coefficient()), rel=1e-6)
            assert opened.record["resolved"][COEFFICIENT] == float(controller.coefficient())
            assert opened.coefficient_from == ("recipe" if hasattr(controller, "warmup_steps") else "run.json")


@pytest.mark.parametrize("number", [1, 2, 4])
def test_of_an_older_run_the_coefficient_is_estimated_from_its_figures(trained, tmp_path, number):
    cache, folders, kept = trained
    folder = tmp_path / "sae"
    folder.mkdir()
    for path in folders[number].iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    record = read_sealed(folder / "run.json")
    record.pop("xxh3", None)
    del record["resolved"][COEFFICIENT]
    write_sealed(folder / "run.json", record)
    opened = open_trained(folder, lambda record: cache)
    assert opened.coefficient_from == "metrics.jsonl"
    # After 120 steps thresholds are shifted far at the end, and the penalty with them: by 35 % for Standard.
    assert opened.coefficient == pytest.approx(float(kept[number][0].controller.coefficient()), rel=0.5)


def test_what_is_not_centred_needs_no_cache(tmp_path):
    recipe = {"train": RECIPE["train"] | {"num_tokens": 640, "centre_input": False, "scale": False},
              "sae": [{"architecture": "topk", "d_sae": 40, "k": 3}]}
    _, [folder] = tiny_run.train(tmp_path, recipe)

    def refuse(record):
        raise AssertionError("no cache is needed")

    opened = open_trained(folder, refuse)
    assert opened.statistics == InputStatistics(opened.statistics.centre, 1.0)
    assert not opened.statistics.centre.any()
    assert json.loads((folder / "metrics.jsonl").read_text().splitlines()[-1])["step"] == 10
