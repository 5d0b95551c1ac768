"""Nothing in a cache is ever run: pickles, codecs and code put into it leave no trace."""

import io
import json
import os
import pickle
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest

from shared.format.layout import COMMITS, GROUP, PASSES, PLAN
from tests.shared import small
from tests.shared.hostile import TOKENIZER_JSON, change_json, put, replace
from tests.shared.hostile_reader import STEPS

RESID = f"{GROUP}/layers/2/resid_post"
FINE = {step: ["ok"] for step in STEPS}
RECORD = f"{COMMITS}/{small.PASS.pass_id}/000001.g0.json"


class Payload:
    """Makes a file when it is unpickled."""

    def __init__(self, canary):
        self.canary = str(canary)

    def __reduce__(self):
        return os.mkdir, (self.canary,)


def as_pickle(canary):
    return pickle.dumps(Payload(canary))


def as_npy(canary):
    file = io.BytesIO()
    np.save(file, np.array([Payload(canary)], object), allow_pickle=True)
    return file.getvalue()


def as_torch(canary):
    """What torch.save writes: a zip with a pickle."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("archive/data.pkl", as_pickle(canary))
        archive.writestr("archive/version", "3\n")
    return file.getvalue()


def as_python(canary):
    return f"import os\nos.mkdir({str(canary)!r})\n".encode()


def as_template(canary):
    return b"{{ cycler.__init__.__globals__.os.mkdir('" + str(canary).encode() + b"') }}"


def as_auto_map(canary):
    return json.dumps({"auto_map": {"AutoTokenizer": ["tokenizer.Evil", None], "AutoModel": "model.Evil"},
                       "tokenizer_class": "Evil", "chat_template": as_template(canary).decode()}).encode()


# What lies in the cache besides what is ours, and what it is made of.
BESIDE = {
    "weights.pt": as_torch, "cache.pkl": as_pickle, "plan.pickle": as_pickle, ".metadata": as_pickle,
    "__init__.py": as_python, "conftest.py": as_python, "sitecustomize.py": as_python, "setup.py": as_python,
    f"{GROUP}/.metadata": as_pickle, f"{GROUP}/tokens/token_id/c/0.npy": as_npy, f"{GROUP}/tokens/.zarray": as_pickle,
    f"{GROUP}/.zmetadata": as_pickle, f"{RESID}/c/1/0.pt": as_torch, f"{PASSES}/evil.pkl": as_pickle,
    f"{COMMITS}/{small.PASS.pass_id}/000001.g1.pkl": as_pickle, "tokenizer/tokenizer.py": as_python,
    "tokenizer/tokenizer_config.json": as_auto_map, "tokenizer/config.json": as_auto_map,
    "tokenizer/chat_template.jinja": as_template, "skipped.jsonl": as_pickle, "provenance.jsonl": as_pickle,
}
# What stands in the place of a file of ours; whatever vouches for it vouches for this.
INSTEAD = {
    PLAN: as_pickle, f"{PASSES}/{small.PASS.pass_id}.json": as_pickle, RECORD: as_pickle,
    f"{GROUP}/zarr.json": as_pickle, f"{RESID}/zarr.json": as_python, f"{RESID}/c/1/0": as_torch,
    f"{GROUP}/layers/2/norm/c/1": as_npy, f"{GROUP}/tokens/token_id/c/0": as_npy, TOKENIZER_JSON: as_pickle,
}
CODECS = ["numcodecs.pickle", "pickle", "numcodecs.json2", "os.system", "builtins.eval", "numcodecs.msgpack2"]


@pytest.fixture
def cache(honest, memory_folder):
    return Path(shutil.copytree(honest, memory_folder / "cache"))


@pytest.fixture
def canary(memory_folder):
    return memory_folder / "canary"


def test_the_payloads_do_run_where_they_are_let(canary):
    for data in (as_pickle(canary), zipfile.ZipFile(io.BytesIO(as_torch(canary))).read("archive/data.pkl")):
        pickle.loads(data)  # noqa: S301
        canary.rmdir()
    np.load(io.BytesIO(as_npy(canary)), allow_pickle=True)
    canary.rmdir()
    exec(as_python(canary))
    assert canary.is_dir()


@pytest.mark.parametrize("name", BESIDE)
def test_what_lies_beside_our_files_is_not_looked_at(name, reader, cache, canary):
    replace(cache / name, BESIDE[name](canary))
    assert reader.look_at(cache, cache) == FINE
    assert not canary.exists()


@pytest.mark.parametrize("name", INSTEAD)
def test_what_stands_in_the_place_of_a_file_of_ours_is_refused(name, reader, cache, canary):
    data = INSTEAD[name](canary)
    if name.endswith(".json") and "zarr" not in name and "tokenizer" not in name:
        replace(cache / name, data)
    else:
        put(cache, name, data)
    assert reader.look_at(cache, cache.parent)["read"][1] == 77
    assert not canary.exists()


@pytest.mark.parametrize("codec", CODECS)
def test_a_codec_that_we_do_not_write_is_refused_by_its_name(codec, reader, cache, canary):
    entry = {"name": codec, "configuration": {"command": f"mkdir {canary}", "source": as_python(canary).decode()}}
    change_json(cache, f"{RESID}/zarr.json", lambda content: content["codecs"].append(entry))
    ended = reader.look_at(cache, cache.parent)
    for step in ("read", "verify"):
        assert ended[step][1] == 77
        assert codec in ended[step][2]
    assert not canary.exists()


def test_a_normaliser_that_would_take_all_memory_is_not_even_loaded(reader, cache):
    normaliser = {"type": "Precompiled", "precompiled_charsmap": "/////w=="}  # four gigabytes, it says
    change_json(cache, TOKENIZER_JSON, lambda content: content.update(normalizer=normaliser))
    assert reader.look_at(cache, cache.parent) == FINE
