"""Rows with a NaN or an infinity: found exactly, kept in place, listed, and never served."""

import json
import random

import numpy as np
import pytest
import torch

import harvest.run
from harvest.forward import nonfinite_rows
from harvest.model import load_model
from harvest.run import harvest as run_harvest
from harvest.unit_writer import NONFINITE_ROWS
from harvest.units import UnitReader
from shared.errors import DataError
from shared.format.commits import read_records
from shared.format.plan import read_passes
from shared.reading.cache import open_cache
from tests import tiny
from train.batches import Batches
from train.config import plan_saes, read_train_config, sae_tables
from train.evaluation.evaluate import evaluate_saes
from train.export import load_sae
from train.policy import TokenPolicy
from train.run import train_saes

BAD = (torch.nan, torch.inf, -torch.inf)
LAYERS = (0, 2)


@pytest.fixture
def inject(monkeypatch):
    """Makes a harvest meet values at chosen (row, layer) of a cache, where they touch no other row.

    A hook puts the value into what the layer returns; the layer after it is given the clean output again, so
    that neither deeper layers nor later tokens see it.
    """

    def plant(clean, planted):
        reader = UnitReader(clean)
        batches = [batch for unit in clean.geometry.fill_order(4096) for batch in reader.batches(unit)]
        met = []

        def load(*arguments):
            cut = load_model(*arguments)
            for layer in LAYERS:
                spoil(cut, layer)
            return cut

        def spoil(cut, layer):
            calls, kept = iter(batches), []

            def hook(module, _, output):
                dirty = output.clone()
                for line, piece in enumerate(next(calls)):
                    for row in range(piece.keep, piece.stop):
                        for value, column in planted.get((row, layer), ()):
                            dirty[line, row - piece.start, column] = value
                            met.append((row, layer))
                kept[:] = [output]
                return dirty

            cut.layers[layer].register_forward_hook(hook)
            if layer + 1 < len(cut.layers):
                cut.layers[layer + 1].register_forward_pre_hook(lambda module, given: (kept[0], *given[1:]))

        monkeypatch.setattr(harvest.run, "load_model", load)
        return met

    return plant


def bits(cache, layer, rows):
    return cache.layer(layer)[rows].view(np.uint16)


def test_the_bits_tell_every_value_of_bfloat16():
    every = torch.arange(1 << 16, dtype=torch.int32).to(torch.int16).view(torch.bfloat16)
    assert torch.equal(nonfinite_rows(every[:, None]), ~every.float().isfinite())
    largest = torch.full((1, 64), torch.finfo(torch.bfloat16).max, dtype=torch.bfloat16)
    assert not nonfinite_rows(largest).any()  # though its norm is beyond float32
    assert torch.linalg.vector_norm(largest, dtype=torch.float32).isinf()


@pytest.fixture
def spoiled(inject, llama, chat_file, tmp_path, cache_folder):
    """A cache with 100 bad (row, layer), some finite rows whose norm overflows, and the clean one."""
    clean = open_cache(cache_folder)
    rng = random.Random(4)
    committed = [row for unit in clean.geometry.fill_order(4096) for row in clean.unit_rows(unit)]
    places = rng.sample([(row, layer) for row in committed for layer in LAYERS], 105)
    planted = {place: [(rng.choice(BAD), rng.randrange(32)) for _ in range(rng.choice([1, 1, 3]))]
               for place in places[:100]}
    huge = {place: [(3e38, 7)] for place in places[100:]}
    met = inject(clean, planted | huge)
    cache = tiny.make_cache(tmp_path / "cache", llama, chat_file)
    assert {*met} == {*places}
    return clean, cache, {*planted}, {*huge}


def test_100_bad_rows_are_found_and_all_others_are_bit_identical(spoiled):
    clean, cache, bad, huge = spoiled
    for layer in LAYERS:
        wanted = {row for row, at in bad if at == layer}
        found = {unit: record.nonfinite.get(layer, []) for unit, record in cache.records(layer).items()}
        assert all(rows == sorted(rows) for rows in found.values())
        assert all(row in cache.unit_rows(unit) for unit, rows in found.items() for row in rows)
        assert {row for rows in found.values() for row in rows} == wanted
        committed = np.concatenate([np.array(cache.unit_rows(unit)) for unit in cache.committed_units(layer)])
        served = cache.rows(layer=layer)
        assert {*committed.tolist()} - {*served.tolist()} == wanted
        touched = {row for row, at in bad | huge if at == layer}
        others = np.array(sorted({*committed.tolist()} - touched))
        assert (bits(cache, layer, others) == bits(clean, layer, others)).all()
        there = cache.layer(layer)[sorted(wanted)].astype(np.float32)
        assert not np.isfinite(there).all(axis=1).any()  # in place, as they came
        assert np.isinf(cache.layer(layer).norm([row for row, at in huge if at == layer])).all()


def test_training_and_evaluation_never_see_them(spoiled, tmp_path):
    _, cache, bad, _ = spoiled
    keep_all = TokenPolicy(drop_classes=(), max_norm=None)
    batches = Batches(cache, layer=2, batch_size=64, policy=keep_all)
    served = np.concatenate([batches.rows(step) for step in range(len(batches))])
    assert not {row for row, layer in bad if layer == 2} & {*served.tolist()}
    assert all(x.isfinite().all() for x in batches)
    recipe = {"train": {"batch_size": 64, "num_tokens": 64 * 10}, "sae": [{"d_sae": 48, "k": 3}]}
    config = read_train_config(recipe)
    saes = plan_saes(sae_tables(recipe, None), config, 2, cache.d_model)
    [folder] = train_saes(cache, 2, config, saes, runs=tmp_path, device="cpu", say=lambda line: None)
    assert all(tensor.isfinite().all() for tensor in vars(load_sae(folder)).values() if torch.is_tensor(tensor))
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert all(np.isfinite(value) for line in lines for value in line.values() if value is not None)
    [figures] = evaluate_saes(cache, 2, [folder])
    held_out = {row for row, layer in bad if layer == 2 and row >= cache.num_train_rows}
    assert held_out
    assert figures["num_rows"] == cache.num_rows - cache.num_train_rows - len(held_out)


def test_status_counts_them(spoiled, command):
    _, cache, bad, _ = spoiled
    assert f"{len(bad)} non-finite rows" in command.run("status", cache.path).out


def test_a_harvest_that_wants_none_names_the_row_and_leaves_nothing_half_done(
    inject, llama, chat_file, tmp_path, cache_folder
):
    clean = open_cache(cache_folder)
    second = clean.geometry.fill_order(4096)[1]
    row = clean.unit_rows(second)[100]
    inject(clean, {(row, 2): [(torch.nan, 0)]})
    place = f"conversation {clean.conversation([row])[0]}, position {clean.position([row])[0]}, in unit {second}"
    with pytest.raises(DataError, match=rf"Row {row} of layer 2 \({place}\) holds a NaN.*harvest.nonfinite=keep"):
        tiny.make_cache(tmp_path / "cache", llama, chat_file, nonfinite="error")
    [pass_id] = read_passes(tmp_path / "cache")
    assert second not in read_records(tmp_path / "cache", pass_id)
    assert list((tmp_path / "cache" / "tmp").iterdir()) == []
    cache = run_harvest(tiny.make_job(llama, chat_file), tmp_path / "cache")  # it goes on with another policy
    assert second in cache.committed_units(2)


def test_a_model_that_computes_nothing_else_is_an_error_whatever_the_policy(
    inject, llama, chat_file, tmp_path, cache_folder
):
    clean = open_cache(cache_folder)
    first = clean.geometry.fill_order(4096)[0]
    rows = list(clean.unit_rows(first))[: NONFINITE_ROWS + 1]
    inject(clean, {(row, 0): [(torch.nan, 0)] for row in rows})
    with pytest.raises(DataError, match=r"More than 1% of the \d+ rows of unit .*compute_dtype=float32"):
        tiny.make_cache(tmp_path / "cache", llama, chat_file)
    [pass_id] = read_passes(tmp_path / "cache")
    assert read_records(tmp_path / "cache", pass_id) == {}
