"""`python -m harvest` as a user meets it: one clear line and the right exit code for what can go wrong."""

import json
import re
import shutil
from pathlib import Path

import pytest

from harvest.estimate import estimate
from harvest.opening import start_plan
from shared.format.layout import PLAN
from shared.reading.cache import open_cache
from shared.sealed_json import read_sealed, seal
from tests import tiny

SIZES = ("rows_per_shard=256", "batch_tokens=512", "plan_tokens=all")
SET = [word for size in SIZES for word in ("--set", f"harvest.{size}")]


@pytest.fixture
def base(llama, chat_file, tmp_path):
    """Options of a harvest that works, as a dictionary to change."""
    return {"--model": llama, "--dataset": chat_file, "--cache": tmp_path / "cache", "--layers": "0 2",
            "--num-tokens": 1024, "--threads": 1}


def flat(options):
    return [word for item in options.items() for word in item]


@pytest.fixture
def fails(command, base):
    """Runs `harvest run` with changed options and gives the one line of its error."""

    def run(code, *more, prelude="", cwd=None, **changed):
        options = base | {f"--{key.replace('_', '-')}": value for key, value in changed.items()}
        ended = command.run("run", *flat(options), *SET, *more, prelude=prelude, cwd=cwd)
        assert ended.code == code, ended
        assert "Traceback" not in ended.err + ended.out
        lines = [line for line in ended.err.splitlines() if line.strip() and not line.startswith("plan: ")]
        assert lines[0].startswith("Error: "), ended.err
        assert not (Path(base["--cache"]) / PLAN).exists() or code in {75, 76, 74}
        return " ".join(line.strip() for line in lines)

    return run


def test_a_run_ends_with_what_to_type_next(command, base):
    ended = command.run("run", *flat(base), *SET)
    assert ended.code == 0, ended.err
    assert "make train LAYER=2" in ended.out
    assert "training tokens" in ended.out


@pytest.mark.parametrize("name", ["nosuch", "./nosuch", "/nosuch/model", "llama", "a/b/c", ""])
def test_a_missing_model(fails, name):
    line = fails(2, model=name)
    assert repr(name) in line


def test_no_model_at_all(command):
    ended = command.run("run")
    assert ended.code == 2
    assert "No model given" in ended.err


def test_a_folder_without_config(fails, tmp_path):
    (tmp_path / "empty").mkdir()
    assert "no config.json" in fails(2, model=tmp_path / "empty")


@pytest.mark.parametrize(
    ("name", "text"),
    [("config.json", "{broken"), ("config.json", "[]"), ("config.json", '{"model_type": "nosuch"}'),
     ("config.json", "{}"), ("tokenizer.json", "{broken"), ("tokenizer.json", "{}"),
     ("chat_template.jinja", "{% if %}")],
)
def test_a_damaged_model_folder(fails, llama, tmp_path, name, text):
    folder = Path(shutil.copytree(llama, tmp_path / "model"))
    (folder / name).write_text(text)
    fails(2, model=folder)


def test_damaged_weights(command, base, llama, tmp_path):
    folder = Path(shutil.copytree(llama, tmp_path / "model"))
    (folder / "model.safetensors").write_bytes(b"broken")
    ended = command.run("run", *flat(base | {"--model": folder}), *SET)
    assert ended.code == 2
    assert "Cannot load the model" in ended.err
    assert "Traceback" not in ended.err


def test_a_folder_without_weights(fails, llama, tmp_path):
    folder = Path(shutil.copytree(llama, tmp_path / "model"))
    (folder / "model.safetensors").unlink()
    assert "no *.safetensors" in fails(2, model=folder)


def test_no_chat_template(fails, llama, tmp_path):
    folder = Path(shutil.copytree(llama, tmp_path / "model"))
    (folder / "chat_template.jinja").unlink()
    config = json.loads((folder / "tokenizer_config.json").read_text())
    config.pop("chat_template", None)
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    assert "no chat template" in fails(2, model=folder)


def test_an_empty_dataset(fails, tmp_path):
    (tmp_path / "empty.jsonl").write_text("\n")
    assert "empty" in fails(65, dataset=tmp_path / "empty.jsonl")


def test_malformed_rows_over_the_threshold(fails, chat_file, tmp_path):
    data = tmp_path / "data.jsonl"
    data.write_text(chat_file.read_text() + '{"text": "a"}\n' * 3)
    line = fails(65, dataset=data)
    assert "3 of 63 rows are malformed" in line
    assert "data.jsonl:61: no_messages" in line


def test_a_missing_data_file(fails):
    assert "There is no data file 'nosuch.jsonl'" in fails(2, dataset="nosuch.jsonl")


@pytest.mark.parametrize("layers", ["4", "0 17"])
def test_a_layer_out_of_range(fails, layers):
    assert "has layers 0 to 3" in fails(2, layers=layers)


@pytest.mark.parametrize("layers", ["-1", "x", "", "1.5"])
def test_layers_that_are_no_layers(fails, layers):
    fails(2, layers=layers)


def test_an_unwritable_cache_folder(fails, tmp_path):
    (tmp_path / "file").write_text("x")
    assert "Cannot write" in fails(74, cache=tmp_path / "file" / "cache")


def test_a_cache_that_is_a_file(fails, command, cache_folder, chat_file):
    before = chat_file.read_bytes()
    assert "is a file, and a cache is a folder" in fails(2, cache=chat_file)
    assert "is a file, and a cache is a folder" in fails(2, "--fresh", "--yes", cache=chat_file)
    for words in (["status", chat_file], ["gc", chat_file], ["compress", cache_folder, chat_file]):
        ended = command.run(*words)
        assert ended.code == 2
        assert "Traceback" not in ended.err
    assert chat_file.read_bytes() == before


def test_a_read_only_file_system(fails):
    prelude = (
        "import errno, shared.storage as storage\n"
        "def refuse(operation, path):\n"
        "    raise OSError(errno.EROFS, 'Read-only file system', str(path))\n"
        "storage._observer = refuse\n"
    )
    assert "Read-only file system" in fails(74, prelude=prelude)


def test_a_disk_that_is_too_small_says_what_fits(fails, base):
    line = fails(75, prelude="import shared.storage as storage\nstorage.free_bytes = lambda path: 400_000\n")
    assert "GB needed" in line
    assert re.search(r"[\d,]+ training tokens fit: TOKENS=\d+", line)
    assert not list(Path(base["--cache"]).glob("commits/*/*.json"))


def test_a_disk_that_fills_up_on_the_way_loses_nothing(command, base, llama, chat_file, tmp_path):
    prelude = (
        "import errno, shared.storage as storage\n"
        "seen = []\n"
        "def fill(operation, path):\n"
        "    seen.append((operation, path.parent.parent.name))\n"
        "    if seen.count(('link', 'commits')) >= 2 and operation in {'write', 'allocate'}:\n"
        "        raise OSError(errno.ENOSPC, 'No space left on device', str(path))\n"
        "storage._observer = fill\n"
    )
    ended = command.run("run", *flat(base), *SET, prelude=prelude)
    assert ended.code == 75, ended.err
    assert "run the same command again" in ended.err
    assert "Traceback" not in ended.err
    committed = len(list(base["--cache"].glob("commits/*/*.json")))
    assert committed >= 1
    assert command.run("run", *flat(base), *SET).code == 0
    assert command.run("verify", base["--cache"]).code == 0
    whole = tmp_path / "whole"
    assert command.run("run", *flat(base | {"--cache": whole}), *SET).code == 0
    assert tiny.promised(base["--cache"]) == tiny.promised(whole)


def test_a_cache_of_another_format_version(fails, cache_folder, tmp_path):
    copy = Path(shutil.copytree(cache_folder, tmp_path / "copy"))
    (copy / PLAN).write_bytes(seal(read_sealed(copy / PLAN) | {"format_version": 9}))
    assert "format 9" in fails(76, cache=copy)


def test_a_damaged_plan(fails, cache_folder, tmp_path):
    copy = Path(shutil.copytree(cache_folder, tmp_path / "copy"))
    (copy / PLAN).write_text((copy / PLAN).read_text().replace('"seed": 0', '"seed": 1'))
    assert "checksum" in fails(77, cache=copy)


def test_another_configuration_names_the_field(fails, cache_folder):
    assert re.search(r"there +asked seed +0 +3 ", fails(76, "--set", "harvest.seed=3", cache=cache_folder))


def fake_hub(error):
    return (
        "import huggingface_hub\n"
        "try:\n"
        "    import httpx2 as httpx\n"
        "except ImportError:\n"
        "    import httpx\n"
        "from huggingface_hub import errors\n"
        "def repo_info(self, repo, **options):\n"
        "    request = httpx.Request('GET', 'https://hub.invalid/' + repo)\n"
        f"    raise {error}\n"
        "huggingface_hub.HfApi.repo_info = repo_info\n"
        "huggingface_hub.try_to_load_from_cache = lambda *a, **k: None\n"
    )


@pytest.mark.parametrize(
    ("error", "code", "says"),
    [
        ("errors.GatedRepoError('gated', response=httpx.Response(403, request=request))", 2, "accept its licence at"),
        ("errors.RepositoryNotFoundError('404', response=httpx.Response(404, request=request))", 2, "no model 'meta"),
        ("errors.RevisionNotFoundError('404', response=httpx.Response(404, request=request))", 2, "no such revision"),
        ("errors.HfHubHTTPError('503', response=httpx.Response(503, request=request))", 75, "Cannot reach"),
        ("errors.OfflineModeIsEnabled('offline')", 75, "Cannot reach"),
        ("ConnectionError('no route')", 75, "Cannot reach"),
        ("httpx.ConnectError('no route')", 75, "Cannot reach"),
    ],
)
@pytest.mark.parametrize("model", ["meta-llama/Llama-3.2-3B-Instruct", "llama3.2-3b-instruct"])
def test_what_a_hub_may_answer_about_a_model(fails, error, code, says, model):
    line = fails(code, model=model, prelude=fake_hub(error))
    assert says in line
    assert "meta-llama/Llama-3.2-3B-Instruct" in line


def test_a_hub_that_cannot_be_reached(fails):
    line = fails(75, model="org/name")
    assert "Cannot reach" in line
    assert "MODEL=path/to/folder" in line


def test_a_hub_data_set_that_cannot_be_reached(fails):
    assert "DATA=my.jsonl" in fails(75, dataset="tulu-3-sft-mixture")


def test_an_unknown_recipe_key(fails, base, tmp_path):
    recipe = tmp_path / "mine.toml"
    recipe.write_text("[harvest]\nmax_lenght = 5\n")
    assert "Did you mean 'max_length'?" in fails(2, recipe=recipe)
    assert "Did you mean 'seed'?" in fails(2, "--set", "harvest.sed=1")


def test_a_recipe_value_out_of_range(fails):
    assert "[harvest].max_length" in fails(2, "--set", "harvest.max_length=0")
    assert "got -5" in fails(2, num_tokens=-5)


@pytest.mark.parametrize("device", ["cuda:99", "tpu", "mps", "gpu"])
def test_a_device_that_is_not_there(fails, device):
    assert repr(device) in fails(2, device=device)


def test_a_dry_run_writes_nothing_and_knows_the_bytes(command, base):
    ended = command.run("run", *flat(base), *SET, "--dry-run")
    assert ended.code == 0, ended.err
    assert not Path(base["--cache"]).exists()
    told = 1e6 * float(re.search(r"= ([\d.]+) MB", ended.out)[1])
    real = command.run("run", *flat(base), *SET)
    assert real.code == 0, real.err
    arrays = [path for path in Path(base["--cache"]).glob("activations.zarr/layers/*/*/c/**/*") if path.is_file()]
    written = sum(path.stat().st_size for path in arrays)
    assert abs(told - written) <= 0.01 * written
    for line in ("plan", "tokens", "disk"):
        shown = [[row for row in out.splitlines() if row.startswith(line)] for out in (ended.out, real.out)]
        assert [re.sub(r"free.*", "", row) for row in shown[0]] == [re.sub(r"free.*", "", row) for row in shown[1]]
    assert "tokens/s, probed" in ended.out


FIXTURES = {
    "whole plan": {"num_tokens": 1_000_000},
    "some units": {"num_tokens": 1024},
    "long chats are cut": {"max_length": 30, "num_tokens": 2000},
    "one layer, large shards": {"layers": [3], "rows_per_shard": 4096, "num_tokens": 3000},
    "a small plan": {"plan_tokens": 1500, "num_tokens": 1500},
}


@pytest.mark.parametrize("settings", FIXTURES.values(), ids=FIXTURES)
def test_the_estimated_bytes_and_tokens_are_those_of_the_harvest(llama, chat_file, tmp_path, settings):
    job = tiny.make_job(llama, chat_file, **settings)
    plan, _, _ = start_plan(job)
    costs = estimate(job, plan, tmp_path / "cache")
    assert not (tmp_path / "cache").exists()
    made = tiny.make_cache(tmp_path / "cache", llama, chat_file, **settings)
    for layer in job.layers:
        files = [path for path in made.path.glob(f"activations.zarr/layers/{layer}/*/c/**/*") if path.is_file()]
        assert sum(path.stat().st_size for path in files) == costs.bytes_per_layer > 0
    assert costs.num_rows == len(made.rows(layer=job.layers[0]))
    assert costs.num_train_rows == len(made.rows(layer=job.layers[0], split="train"))


def test_a_dry_run_of_a_cache_that_is_there_changes_nothing(command, base, cache_folder):
    before = {path: path.stat().st_mtime_ns for path in cache_folder.rglob("*")}
    ended = command.run("run", *flat(base | {"--cache": cache_folder, "--num-tokens": 10**6}), *SET, "--dry-run")
    assert ended.code == 0, ended.err
    assert "to do: 0 units" in ended.out
    assert {path: path.stat().st_mtime_ns for path in cache_folder.rglob("*")} == before


def test_fresh_asks_and_never_removes_what_is_no_cache(command, base, cache_folder, tmp_path):
    copy = Path(shutil.copytree(cache_folder, tmp_path / "copy"))
    options = flat(base | {"--cache": copy})
    assert command.run("run", *options, *SET, "--fresh").code != 0  # nobody answers
    assert tiny.promised(copy) == tiny.promised(cache_folder)
    assert command.run("run", *options, *SET, "--fresh", "--dry-run", "--yes").code == 2
    assert tiny.promised(copy) == tiny.promised(cache_folder)
    assert command.run("run", *options, *SET, "--fresh", "--yes").code == 0
    assert len(tiny.promised(copy)) < len(tiny.promised(cache_folder))
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis.tex").write_text("x")
    ended = command.run("run", *flat(base | {"--cache": tmp_path / "home"}), *SET, "--fresh", "--yes")
    assert ended.code == 76
    assert (tmp_path / "home" / "thesis.tex").exists()


def test_plan_writes_all_but_the_activations(command, base):
    options = {key: value for key, value in base.items() if key != "--threads"}
    ended = command.run("plan", *flat(options), *SET)
    assert ended.code == 0, ended.err
    assert (base["--cache"] / PLAN).exists()
    assert not list(base["--cache"].glob("commits/*"))
    assert command.run("run", *flat(base), *SET).code == 0


def test_status_shows_what_is_there(command, cache_folder, tmp_path):
    ended = command.run("status", cache_folder)
    assert ended.code == 0, ended.err
    units = open_cache(cache_folder).num_units
    assert f"layers [0, 2] (float32, sdpa): {units} of {units} units" in ended.out
    assert "No caches under" in command.run("status", cwd=tmp_path).out
    missing = command.run("status", tmp_path / "nosuch")
    assert missing.code == 74
    assert "no cache at" in missing.err


def test_verify_names_the_damaged_file(command, cache_folder, tmp_path):
    assert command.run("verify", cache_folder).code == 0
    copy = Path(shutil.copytree(cache_folder, tmp_path / "copy"))
    path = copy / "activations.zarr/layers/2/resid_post/c/3/0"
    path.chmod(0o644)
    data = bytearray(path.read_bytes())
    data[777] ^= 1
    path.write_bytes(data)
    ended = command.run("verify", copy)
    assert ended.code == 77
    assert str(path) in ended.err
    assert "Traceback" not in ended.err


def test_an_unknown_option_is_usage(command):
    assert command.run("run", "--colour", "red").code == 2
    assert command.run("nosuch").code == 2
