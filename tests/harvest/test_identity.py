"""The identity guard: what decides the rows is refused when it changes, by name; all else is not looked at."""

import copy
import json
import os
import random
import re
import shutil
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest

import harvest.run
from harvest import opening
from harvest.config import HarvestConfig
from harvest.device import Device, find_device
from harvest.identity import check_identity, tokenizer_files
from harvest.job import prepare
from harvest.opening import open_plan
from harvest.run import harvest as run_harvest
from shared.digests import hex_digest
from shared.errors import IdentityError
from shared.format.identity import differences, two_columns
from shared.format.plan import read_plan
from shared.reading.cache import open_cache
from tests import tiny

HUB = {
    "model": {"name": "org/model", "revision": "a" * 40, "weights": "1" * 32},
    "dataset": {"name": "org/chats", "revision": "b" * 40, "split": "train"},
}
"""What a plan says of a hub model and data set, in place of a local folder and file."""

OTHERS = {
    "model.name": "org/other", "model.revision": "c" * 40, "model.weights": "2" * 32,
    "model.trust_remote_code": True, "tokenizer": "3" * 32,
    "template_variables.date_string": "01 Jan 2020", "template_variables.tools": "none", "template_date": "2020-01-01",
    "dataset.name": "org/other", "dataset.revision": "d" * 40, "dataset.split": "test",
    "order.kind": "block", "order.separator": "<|end|>", "order.bos": True,
    "seed": 3, "max_length": 2048, "control_tokens": "keep",
    "held_out.share": 0.05, "held_out.max_conversations": 100, "held_out.max_rows": 40_000,
    "rows_per_shard": 512, "shards_per_unit": 4, "batch_tokens": 1024, "plan_tokens": 5000,
}
"""Every field of design 4, with another value than the plan's."""


def leaves(identity, prefix=""):
    for key, value in identity.items():
        if isinstance(value, dict):
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield prefix + key


def change(identity, field, value):
    changed = copy.deepcopy(identity)
    *folders, name = field.split(".")
    table = changed
    for folder in folders:
        table = table[folder]
    table[name] = value
    return changed


def named(error):
    """The fields that a message names."""
    lines = str(error.value).splitlines()
    assert "there" in lines[1]
    assert "asked" in lines[1]
    assert "--fresh" in lines[-1]
    return [line.split()[0] for line in lines[2:] if line.startswith("  ")]


@pytest.fixture(scope="module")
def planned(llama, cache_folder):
    """A plan of a hub model and data set, and the tokenizer's files."""
    plan = read_plan(cache_folder)
    identity = {**plan.identity, **copy.deepcopy(HUB)}
    files = tokenizer_files(tiny.make_job(llama, "chitchat").tokenizer)
    return plan.model_copy(update={"identity": identity}), files


def test_the_list_of_fields_is_that_of_the_identity(planned, cache):
    assert {*leaves(planned[0].identity)} <= {*OTHERS}
    local = {"model.config", "dataset.xxh3"}  # of a folder and a file: see the tests of those below
    assert {*leaves(cache.identity)} - {*OTHERS} == local
    assert len(OTHERS) >= 20


@pytest.mark.parametrize("field", OTHERS)
def test_one_changed_field_is_refused_and_named_with_both_values(field, planned, cache_folder):
    plan, files = planned
    check_identity(cache_folder, plan, copy.deepcopy(plan.identity), files)
    shown, value = field, str(OTHERS[field])
    if field == "tokenizer":  # its files are named: "tokenizer" alone would not say what changed
        files = files | {"chat_template.jinja": b"{{ messages }}"}
        shown, value = "tokenizer.chat_template.jinja", hex_digest(b"{{ messages }}")
    with pytest.raises(IdentityError) as error:
        check_identity(cache_folder, plan, change(plan.identity, field, OTHERS[field]), files)
    assert error.value.exit_code == 76
    assert named(error) == [shown]
    assert value in str(error.value)
    assert "None" not in str(error.value)


def accept(cache, model, data, **settings):
    """Check a plan the way that `harvest run` does."""
    plan = open_plan(tiny.make_job(model, data, **settings), cache)
    assert plan == read_plan(cache)


def refuse(cache, model, data, **settings):
    before = tiny.promised(cache)
    with pytest.raises(IdentityError) as error:
        open_plan(tiny.make_job(model, data, **settings), cache)
    assert tiny.promised(cache) == before
    return named(error)


@pytest.mark.parametrize(
    ("settings", "field"),
    [
        ({"seed": 5}, "seed"),
        ({"max_length": 100}, "max_length"),
        ({"control_tokens": "keep"}, "control_tokens"),
        ({"template_variables": {"date_string": "01 Jan 2020"}}, "template_variables.date_string"),
        ({"template_variables": {"date_string": "26 Jul 2024", "x": "y"}}, "template_variables.x"),
        ({"template_date": "2020-01-01"}, "template_date"),
        ({"held_out_rows": 10}, "held_out.max_rows"),
        ({"rows_per_shard": 128}, "rows_per_shard"),
        ({"batch_tokens": 64}, "batch_tokens"),
        ({"plan_tokens": 500}, "plan_tokens"),
    ],
)
def test_what_a_recipe_says_otherwise_is_refused(llama, chat_file, cache_folder, settings, field):
    assert refuse(cache_folder, llama, chat_file, **settings) == [field]


def changed_copy(folder, to, name, change):
    """A copy of a model folder with one file changed."""
    copied = Path(shutil.copytree(folder, to / folder.name))
    path = copied / name
    data = path.read_bytes()
    path.write_bytes(change(data))
    assert path.read_bytes() != data
    return copied


@pytest.mark.parametrize(
    ("name", "change", "field"),
    [
        ("model.safetensors", lambda data: data[:-1] + bytes([data[-1] ^ 1]), "model.weights"),
        ("config.json", lambda data: data.replace(b'"rms_norm_eps": 1e-06', b'"rms_norm_eps": 1e-05'), "model.config"),
        ("chat_template.jinja", lambda data: data + b" ", "tokenizer.chat_template.jinja"),
        ("tokenizer.json", lambda data: data.replace(b'"add_prefix_space": false', b'"add_prefix_space": true', 1),
         "tokenizer.tokenizer.json"),
        ("tokenizer_config.json", lambda data: data.replace(b'"bos_token": "<|begin_of_text|>"',
                                                            b'"bos_token": "<|end_of_text|>"'), "tokenizer.bos_token"),
    ],
)
def test_a_changed_file_of_the_model_is_refused(llama, chat_file, cache_folder, tmp_path, name, change, field):
    assert refuse(cache_folder, changed_copy(llama, tmp_path, name, change), chat_file) == [field]


def test_another_model_or_other_conversations_are_refused(llama, qwen2, chat_file, cache_folder, tmp_path):
    assert {"model.name", "model.weights", "model.config"} <= {*refuse(cache_folder, qwen2, chat_file)}
    changed = tmp_path / chat_file.name
    changed.write_text(chat_file.read_text() + "\n")
    assert refuse(cache_folder, llama, changed) == ["dataset.xxh3"]
    assert {"dataset.name", "dataset.sha256", "dataset.xxh3"} <= {*refuse(cache_folder, llama, "chitchat")}


@pytest.mark.parametrize(
    ("settings", "field", "values"),
    [({"layers": [2, 3]}, "layers", ["0 2", "2 3"]),
     ({"compute_dtype": "bfloat16"}, "compute_dtype", ["float32", "bfloat16"]),
     ({"attention": "eager"}, "attention", ["sdpa", "eager"])],
)
def test_a_layer_belongs_to_one_pass(llama, chat_file, cache_folder, settings, field, values):
    with pytest.raises(IdentityError, match=r"layers \[0, 2\] in one pass") as error:
        run_harvest(tiny.make_job(llama, chat_file, **settings), cache_folder)
    [line] = [line for line in str(error.value).splitlines() if line.startswith("  " + field)]
    assert [word.strip() for word in line.removeprefix("  " + field).split("  ") if word.strip()] == values


# -- what is always accepted ---------------------------------------------------------------------------


def test_the_same_configuration_is_accepted_100_times(llama, chat_file, cache_folder, tmp_path, monkeypatch):
    rng = random.Random(0)
    before = tiny.promised(cache_folder)
    variables = ["TZ", "LANG", "LC_ALL", "HOME", "HF_HOME", "USER", "HF_TOKEN", "OMP_NUM_THREADS", "COLUMNS"]
    for start in range(100):
        place = tmp_path / str(start % 7)
        place.mkdir(exist_ok=True)
        monkeypatch.chdir(place)
        monkeypatch.setenv(rng.choice(variables), rng.choice(["C", "UTC", "/nowhere", "5"]))
        for path in rng.sample([*llama.iterdir(), chat_file, llama], 3):
            os.utime(path, (rng.uniform(0, 2e9), rng.uniform(0, 2e9)))
        model, data = (rng.choice([path, Path(os.path.relpath(path))]) for path in (llama, chat_file))
        num_tokens = rng.choice([1000, 4096, 10**6])
        layers = rng.choice([[0, 2], [2, 0], [2, 0, 2]])
        accept(cache_folder, model, data, num_tokens=num_tokens, layers=layers)
    assert tiny.promised(cache_folder) == before


def test_a_moved_or_renamed_model_or_data_file_is_the_same(llama, chat_file, cache_folder, tmp_path):
    model = Path(shutil.copytree(llama, tmp_path / "renamed"))
    data = Path(shutil.copy(chat_file, tmp_path / "renamed.jsonl"))
    link = tmp_path / "linked"
    link.symlink_to(model)
    accept(cache_folder, model, data)
    accept(cache_folder, link, chat_file)


def test_notes_that_transformers_leaves_in_a_models_files_do_not_count(llama, chat_file, cache_folder, tmp_path):
    model = Path(shutil.copytree(llama, tmp_path / "model"))
    notes = {"config.json": {"transformers_version": "9.9.9", "_name_or_path": "/x", "dtype": "bfloat16"},
             "tokenizer_config.json": {"is_local": False, "name_or_path": "/x", "model_max_length": 7}}
    for name, more in notes.items():
        config = json.loads((model / name).read_text())
        (model / name).write_text(json.dumps(dict(reversed((config | more).items()))))
    (model / "README.md").write_text("another")
    accept(cache_folder, model, chat_file)


def test_sizes_that_the_recipe_leaves_open_are_those_of_the_plan(llama, chat_file, cache_folder, monkeypatch):
    open_sizes = {"model": str(llama), "dataset": str(chat_file), "layers": [0, 2], "num_tokens": 10**6}
    monkeypatch.setattr("harvest.device.CPU_BATCH_TOKENS", 32_768)  # as if it were a larger machine
    job = prepare(HarvestConfig.model_validate(open_sizes), find_device("cpu"), read_plan(cache_folder))
    assert open_plan(job, cache_folder).batch_tokens == 512


@pytest.mark.system
def test_another_process_with_another_hash_seed_and_locale_accepts_it(llama, chat_file, cache_folder, tmp_path):
    root = Path(__file__).resolve().parents[2]
    program = (
        "import sys; from tests import tiny; from harvest.opening import open_plan; from pathlib import Path\n"
        "open_plan(tiny.make_job(Path(sys.argv[1]), Path(sys.argv[2])), Path(sys.argv[3]))\n"
    )
    for seed, locale in ("1", "C"), ("2", "C.UTF-8"):
        environment = os.environ | {"PYTHONHASHSEED": seed, "LC_ALL": locale, "TZ": "Asia/Tokyo"}
        command = [sys.executable, "-c", program, str(llama), str(chat_file), str(cache_folder)]
        subprocess.run(command, env=environment | {"PYTHONPATH": str(root)}, cwd=tmp_path, check=True)


# -- what only warns, and what may be allowed ----------------------------------------------------------


@pytest.fixture
def half(llama, chat_file, tmp_path):
    """A cache with some of its units."""
    tiny.make_cache(tmp_path / "half", llama, chat_file, num_tokens=1024)
    return tmp_path / "half"


@pytest.mark.parametrize(
    ("path", "value", "says"),
    [("device", "NVIDIA H100", "NVIDIA H100"), ("threads", 64, "64"), ("versions.torch", "1.0", "1.0"),
     ("versions.transformers", "9.9", "9.9")],
)
def test_another_device_threads_or_versions_warn_and_it_goes_on(
    llama, chat_file, half, monkeypatch, capsys, path, value, says
):
    there = open_cache(half).committed_units(0)
    real = harvest.run._made_with
    monkeypatch.setattr(harvest.run, "_made_with", lambda *given: change(real(*given), path, value))
    cache = run_harvest(tiny.make_job(llama, chat_file, num_tokens=3000), half)
    assert {*there} < {*cache.committed_units(0)}
    warning = capsys.readouterr().err
    assert "Warning" in warning
    [line] = [line for line in warning.splitlines() if line.startswith(f"  {path} ")]
    assert says in line


def test_without_a_change_nothing_is_warned_of(llama, chat_file, half, capsys):
    run_harvest(tiny.make_job(llama, chat_file, num_tokens=3000), half)
    assert "Warning" not in capsys.readouterr().err


def test_a_number_format_left_open_is_that_of_the_pass_on_another_kind_of_device(
    llama, chat_file, tmp_path, monkeypatch
):
    cache = tiny.make_cache(tmp_path / "cuda", llama, chat_file, compute_dtype="bfloat16", num_tokens=1024)
    done = len(cache.committed_units(0))
    job = tiny.make_job(llama, chat_file, num_tokens=3000)
    assert job.pass_().compute_dtype == "float32"
    cache = run_harvest(job, tmp_path / "cuda")
    assert len(cache.committed_units(0)) > done
    with pytest.raises(IdentityError, match=r"compute_dtype +bfloat16 +float32"):
        run_harvest(tiny.make_job(llama, chat_file, compute_dtype="float32"), tmp_path / "cuda")


def test_another_batch_budget_is_allowed_where_the_user_says_so_and_noted(
    llama, chat_file, half, monkeypatch, capsys
):
    before = open_cache(half)
    done = before.committed_units(0)
    seen = []
    real = harvest.run.Forward.run
    monkeypatch.setattr(harvest.run.Forward, "run", lambda self, batch, ids: seen.append((len(batch), ids.size)) or
                        real(self, batch, ids))
    settings = {"model": str(llama), "dataset": str(chat_file), "num_tokens": 3000} | tiny.SETTINGS
    config = HarvestConfig.model_validate(settings | {"batch_tokens": 128, "num_tokens": 3000})
    with pytest.raises(IdentityError, match=r"batch_tokens +512 +128"):
        open_plan(prepare(config, find_device("cpu"), before.plan), half)
    job = prepare(config, find_device("cpu"), before.plan, ["batch-budget"])
    assert open_plan(job, half) == before.plan
    cache = run_harvest(job, half)
    assert re.search(r"  batch_tokens +512 +128\n", capsys.readouterr().err)
    assert max(size for number, size in seen if number > 1) <= 128  # a longer sequence runs alone
    for unit, record in cache.records(0).items():
        assert record.made_with.get("batch_tokens") == (None if unit in done else 128)
    device = Device(find_device("cpu").device)
    left_open = HarvestConfig.model_validate({key: value for key, value in settings.items() if key != "batch_tokens"})
    assert prepare(left_open, device, before.plan, ["batch-budget"]).batch_tokens(before.plan) == device.batch_tokens


def test_allowing_the_batch_budget_allows_nothing_else(llama, chat_file, half):
    settings = {"model": str(llama), "dataset": str(chat_file)} | tiny.SETTINGS | {"seed": 7, "batch_tokens": 128}
    job = prepare(HarvestConfig.model_validate(settings), find_device("cpu"), None, ["batch-budget"])
    with pytest.raises(IdentityError) as error:
        open_plan(job, half)
    assert named(error) == ["seed"]


def test_the_command_refuses_with_76_and_allows_by_its_option(command, llama, chat_file, half):
    options = ["run", "--model", llama, "--dataset", chat_file, "--cache", half, "--layers", "0 2", "--threads", 1,
               "--num-tokens", 2000, "--set", "harvest.plan_tokens=all", "--set", "harvest.batch_tokens=100"]
    refused = command.run(*options)
    assert refused.code == 76
    assert "Traceback" not in refused.err
    assert "batch_tokens" in refused.err
    assert "--allow batch-budget" in refused.err
    assert command.run(*options, "--allow", "batch-budget").code == 0
    assert command.run(*options, "--allow", "seed").code == 2


def test_two_columns_line_up_and_long_values_show_where_they_differ():
    old = {"a": 1, "long": "x" * 80 + "1", "only": {"there": 5}, "empty": "", "words": [1, 2]}
    new = {"a": "1 ", "long": "x" * 80 + "2", "only": {}, "empty": None, "words": [3]}
    lines = two_columns(differences(old, new))
    assert lines[1:] == [
        "  a           1                           '1 '",
        "  empty       ''                          (not set)",
        "  long        ...xxxxxxxxxxxxxxxxxxxxxx1  ...xxxxxxxxxxxxxxxxxxxxxx2",
        "  only.there  5                           (not set)",
        "  words       1 2                         3",
    ]
    assert lines[0].index("asked") == lines[1].index("'1 '")
    assert differences(old, copy.deepcopy(old)) == []


def test_a_cache_from_before_the_config_was_looked_at_goes_on(llama, chat_file, planned, cache_folder):
    plan, files = planned
    local = read_plan(cache_folder).identity
    before = {**local, "model": {key: value for key, value in local["model"].items() if key != "config"}}
    check_identity(cache_folder, plan.model_copy(update={"identity": before}), local, files)


@pytest.mark.parametrize("identity", [{}, {"model": "x", "dataset": 3}, {"model": {}, "dataset": {}, "tokenizer": 1}])
def test_an_identity_of_any_shape_is_compared(planned, cache, cache_folder, identity):
    plan, files = planned
    with pytest.raises(IdentityError):
        check_identity(cache_folder, plan.model_copy(update={"identity": identity}), cache.identity, files)


def test_of_two_that_plan_at_once_otherwise_the_second_is_refused_and_harms_nothing(
    llama, chat_file, tmp_path, monkeypatch
):
    cache = tmp_path / "cache"
    first, second = (tiny.make_job(llama, chat_file, seed=seed) for seed in (0, 1))
    enter = opening.only_one

    @contextmanager
    def after_the_first(*arguments):
        monkeypatch.setattr(opening, "only_one", enter)
        open_plan(first, cache)
        with enter(*arguments):
            yield

    monkeypatch.setattr(opening, "only_one", after_the_first)
    with pytest.raises(IdentityError, match="seed"):
        open_plan(second, cache)
    assert run_harvest(first, cache).layers == (0, 2)
