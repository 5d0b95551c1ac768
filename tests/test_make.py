"""The two commands of a user, `make harvest` and `make train`: what their variables become, and that they work."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
READY = f"PYTHON={sys.prefix}"
"""An environment that is there: nothing is installed."""
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8").splitlines()
VARIABLES = [line.split("?=")[0].strip() for line in MAKEFILE if "?=" in line]
ENVIRONMENT = {name: value for name, value in os.environ.items() if name not in VARIABLES and "MAKE" not in name}
"""Without what a ``make test`` hands down."""


def make(*words, folder=ROOT, **variables):
    return subprocess.run(["make", "-f", ROOT / "Makefile", READY, *words], capture_output=True, text=True, cwd=folder,
                          env=ENVIRONMENT | variables, check=False)


def typed(*words):
    """The commands that make would run, word by word, from ``python`` on."""
    lines = make("-n", *words).stdout.replace("\\\n", " ").splitlines()
    return [shlex.split(line)[1:] for line in lines if line.startswith(f"{sys.prefix}/bin/python ")]


@pytest.mark.parametrize(("words", "command"), [
    (["harvest", "MODEL=llama3.2-3b-instruct"], "harvest run --model llama3.2-3b-instruct --device auto"),
    (["harvest", "MODEL=a b/model", "DATA=chats/*.parquet", "TOKENS=5000", "CACHE=/x/y z", "WORKERS=8", "DEVICE=cpu"],
     "harvest run --model 'a b/model' --dataset 'chats/*.parquet' --num-tokens 5000 --workers 8 --cache '/x/y z' "
     "--device cpu"),
    (["harvest", "RECIPE=quality", "SET=harvest.layers=[4,12] harvest.seed=3"],
     "harvest run --recipe quality --device auto --set 'harvest.layers=[4,12]' --set harvest.seed=3"),
    (["train", "LAYER=12"], "train run --layer 12 --device auto"),
    (["train", "LAYER=12", "EXPANSION=8 16 32", "SET=sae.k=64", "CACHE=demo"],
     "train run --layer 12 --expansion '8 16 32' --cache demo --device auto --set sae.k=64"),
    (["train", "LAYER=9", 'SET=sae.architecture=["topk","gated"]'],
     """train run --layer 9 --device auto --set 'sae.architecture=["topk","gated"]'"""),
    (["train", "LAYER=9 15", "WORKERS=8"],
     "torch.distributed.run --standalone --nproc-per-node 8 -m train run --layer '9 15' --device auto"),
    (["train", "RECIPE=my.toml"], "train run --recipe my.toml --device auto"),
    (["evaluate", "LAYER=9", "CACHE=demo"], "pipelines evaluate --layer 9 --cache demo --device auto"),
    (["demo", "SET=harvest.num_tokens=60000"], "pipelines demo --device auto --set harvest.num_tokens=60000"),
], ids=lambda value: " ".join(value) if isinstance(value, list) else "")
def test_every_variable_becomes_its_option(words, command):
    assert typed(*words) == [["-m", *shlex.split(command)]]


@pytest.mark.parametrize(("gpus", "processes"), [("0", []), ("1", []), ("3", ["--nproc-per-node", "3"])])
def test_a_training_takes_a_process_for_every_visible_gpu(gpus, processes, tmp_path):
    python = tmp_path / "bin" / "python"
    python.parent.mkdir()
    python.write_text(f"#!/bin/sh\necho {gpus}\n")  # what torch is asked, and nothing else is run
    python.chmod(0o755)

    def launched(*words):
        [line] = make("-n", "train", "LAYER=9", f"PYTHON={tmp_path}", *words).stdout.replace("\\\n", " ").splitlines()
        found = shlex.split(line)[1:]
        return found[found.index("--nproc-per-node"):][:2] if "--nproc-per-node" in found else []

    assert launched() == processes
    assert launched("DEVICE=cpu") == launched("WORKERS=1") == []
    assert launched("WORKERS=5") == ["--nproc-per-node", "5"]


@pytest.mark.parametrize("target", ["train", "evaluate"])
def test_a_missing_layer_is_told_in_one_line_with_what_to_type(target):
    ended = make(target)
    assert ended.returncode == 2
    assert f"LAYER is not set. For example: make {target} LAYER=12" in ended.stderr
    assert len(ended.stderr.splitlines()) == 1


def test_every_variable_and_target_is_in_the_help():
    shown = make("help").stdout
    [targets] = [line.split()[1:] for line in MAKEFILE if line.startswith(".PHONY:")]
    assert len(VARIABLES) > 9
    assert all(f"\n  {name} " in shown for name in VARIABLES)
    assert all(f"  make {name} " in shown for name in targets)


@pytest.mark.parametrize("target", [line.split(":")[0] for line in MAKEFILE if re.match("[a-z-]+:.*##", line)])
def test_every_target_is_sound_shell_in_a_new_folder(target, tmp_path):
    """make's own functions are expanded before a shell sees the line: a comma within $(if ...) cuts it."""
    (tmp_path / "benchmarks").mkdir()
    for name in ("pyproject.toml", "constraints.txt", "benchmarks/peers.txt", "benchmarks/peers_no_deps.txt"):
        shutil.copy(ROOT / name, tmp_path / name)
    printed = make("-n", target, "LAYER=9", "PYTHON=python3", folder=tmp_path)
    assert printed.returncode == 0, printed.stderr
    checked = subprocess.run(["sh", "-n"], input=printed.stdout, capture_output=True, text=True, check=False)
    assert checked.stderr == ""
    assert printed.stdout.strip()


@pytest.mark.system
def test_a_new_user_goes_from_a_model_folder_and_chats_to_figures(llama, chat_file, tmp_path):
    """Nothing is said but the model, the chats and the layer; the cache is found again by its layer."""

    def type_in(*words):
        return make(*words, folder=tmp_path, PYTHONPATH=str(ROOT), HF_HUB_OFFLINE="1", OMP_NUM_THREADS="1",
                    CUDA_VISIBLE_DEVICES="")

    harvested = type_in("harvest", f"MODEL={llama}", f"DATA={chat_file}")
    assert harvested.returncode == 0, harvested.stderr
    assert "time     about" in harvested.stdout  # without a GPU it says what it takes, and goes on
    [next_] = [line.split()[1:] for line in harvested.stdout.splitlines() if line.startswith("next")]
    assert next_[:3] == ["make", "train", "LAYER=2"]
    trained = type_in("train", "LAYER=2")
    assert trained.returncode == 0, trained.stderr
    [cache] = (tmp_path / "caches").iterdir()
    saes = list((tmp_path / "runs" / cache.name / "layer2").glob("batchtopk-*/eval.json"))
    assert len(saes) == 2
    assert type_in("evaluate", "LAYER=2").returncode == 0
    offline = type_in("harvest", "MODEL=llama3.2-3b-instruct")
    assert offline.returncode == 2  # make's own; the command's is 75
    assert "Cannot reach the model hub" in offline.stderr
    assert "MODEL=path/to/folder" in offline.stderr
    assert "Traceback" not in offline.stderr
