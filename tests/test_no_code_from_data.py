"""Nothing that is read can run code: no pickle in any disguise, no eval, no shell, no remote code by the back door.

tests/ itself is free (tests/warm.py executes what tests give it). One file may call torch.load, and only with
``weights_only=True``: dictionary_learning's ae.pt is such a file.
"""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FOLDERS = ("shared", "harvest", "train", "pipelines", "benchmarks")
NAMES = [str(path.relative_to(ROOT)) for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.py"))]

MODULES = {
    "pickle", "_pickle", "cPickle", "pickle5", "cloudpickle", "dill", "joblib", "shelve", "marshal", "copyreg",
    "torch.distributed.checkpoint", "torch.package", "torch.hub", "torch.jit", "torch.serialization", "code", "codeop",
    "numcodecs.pickles", "pandas", "yaml",
}
"""Modules that are not imported: what they read can run code, or they are the door to what does."""

CALLS = {
    "eval", "exec", "compile", "__import__", "torch.load", "torch.save",
    "os.system", "os.popen", "os.execv", "subprocess.getoutput", "subprocess.getstatusoutput",
    "yaml.load", "yaml.unsafe_load", "yaml.full_load",
}
"""Functions that are not called, by their full names."""

TENSORS_ONLY = "train/pickled_tensors.py"
"""The one file that may call torch.save, and torch.load where it says ``weights_only=True`` in so many words."""

TRUSTED = {"False", "self.trust_remote_code", "source.trust_remote_code"}
"""What may be given for trust_remote_code: a model's source sets it for a hub model at a named commit alone."""


def names_of(tree):
    """What the names of a file stand for: {"np": "numpy", "load": "torch.load"}."""
    found = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                first = alias.name.split(".")[0]
                found[alias.asname or first] = alias.name if alias.asname else first
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                found[alias.asname or alias.name] = f"{node.module}.{alias.name}"
    return found


def imported(tree):
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module or ""
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def problems(text, name=""):
    """Why a file could run code that it reads; one line for each reason."""
    tree = ast.parse(text)
    allowed = restricted_calls(tree) if name == TENSORS_ONLY else set()
    known = names_of(tree)
    found = [f"imports {name}" for name in imported(tree)
             if any(name == module or name.startswith(f"{module}.") for module in MODULES)]
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute | ast.Name):
            first, _, rest = ast.unparse(node).partition(".")
            if (rest and first not in known) or node in allowed:
                continue  # a method of something
            full = f"{known.get(first, first)}.{rest}".rstrip(".")
            if full in CALLS or any(full.startswith(f"{module}.") for module in MODULES):
                found.append(f"uses {full}")
        if isinstance(node, ast.Call):
            found += call_problems(node, known)
    return found


def restricted_calls(tree):
    """The functions of the calls torch.save(...) and torch.load(..., weights_only=True)."""
    return {node.func for node in ast.walk(tree) if isinstance(node, ast.Call) and (
        ast.unparse(node.func) == "torch.save" or (ast.unparse(node.func) == "torch.load" and any(
            word.arg == "weights_only" and ast.unparse(word.value) == "True" for word in node.keywords)))}


def call_problems(node, known):
    function = ast.unparse(node.func)
    words = {word.arg: ast.unparse(word.value) for word in node.keywords}
    found = []
    if words.get("allow_pickle", "False") != "False":
        found.append(f"{function} with allow_pickle")
    if words.get("shell", "False") != "False":
        found.append(f"{function} with shell")
    if words.get("weights_only", "True") != "True":
        found.append(f"{function} without weights_only")
    if words.get("trust_remote_code", "False") not in TRUSTED:
        found.append(f"{function} with trust_remote_code={words['trust_remote_code']}")
    if function.endswith(".from_pretrained") and "trust_remote_code" not in words:
        found.append(f"{function} without trust_remote_code: transformers asks the user")
    loads_weights = re.fullmatch(r"transformers\.AutoModel\w*", known.get(function.split(".")[0], ""))
    if loads_weights and function.endswith(".from_pretrained") and not {"use_safetensors", "gguf_file"} & {*words}:
        found.append(f"{function} without use_safetensors: it may read a pickle")
    return found


@pytest.mark.parametrize("name", NAMES)
def test_nothing_that_is_read_can_run_code(name):
    assert problems((ROOT / name).read_text(encoding="utf-8"), name) == []


def test_there_is_something_to_check():
    assert {name.split("/")[0] for name in NAMES} == {*FOLDERS}
    assert len(NAMES) > 80


@pytest.mark.parametrize(
    "text",
    [
        "import pickle", "import cPickle as p", "from dill import loads", "import joblib", "import shelve",
        "import marshal", "import yaml", "from torch.distributed import checkpoint",
        "import torch.distributed.checkpoint as dcp", "from torch.distributed.checkpoint import load",
        "import torch\ntorch.distributed.checkpoint.load({})", "import torch\ntorch.load('x')",
        "import torch as t\nt.load('x')", "from torch import load\nload('x')", "from torch import load as r\nr('x')",
        "import torch\nread = torch.load", "import torch\ntorch.save({}, 'x')", "import torch\ntorch.hub.load('x')",
        "import torch\ntorch.jit.load('x')", "import numpy as np\nnp.load('x', allow_pickle=True)",
        "import numpy as np\nnp.load('x', allow_pickle=given)",
        "eval('1')", "exec('1')", "run = exec", "compile('1', '', 'eval')", "__import__('pickle')",
        "import os\nos.system('ls')", "import subprocess\nsubprocess.run('ls', shell=True)",
        "from transformers import AutoConfig as A\nA.from_pretrained(x, trust_remote_code=True, use_safetensors=True)",
        "from transformers import AutoModel\nAutoModel.from_pretrained('x', trust_remote_code=False)",
        "from transformers import AutoConfig\nAutoConfig.from_pretrained('x')",
        "from transformers import AutoConfig\nAutoConfig.from_pretrained('x', trust_remote_code=config.trust)",
    ],
)
def test_what_it_is_meant_to_find_is_found(text):
    assert problems(text)


@pytest.mark.parametrize(
    "text",
    [
        "import re\nre.compile('x')", "model.eval()", "import numpy as np\nnp.load('x')", "load('x')",
        "import safetensors.torch\nsafetensors.torch.save_file({}, 'x')", "import torch\ntorch.compile(f)",
        "import subprocess\nsubprocess.run(['ls'])", "code = 3\ncode.bit_length()",
    ],
)
def test_what_is_harmless_is_not_found(text):
    assert problems(text) == []


@pytest.mark.parametrize("text", ["torch.load(x)", "torch.load(x, weights_only=given)", "torch.load(x, **words)",
                                  "read = torch.load", "torch.load(x, weights_only=False)"])
def test_the_door_for_pickled_tensors_is_no_wider_than_it_says(text):
    assert problems(f"import torch\n{text}", TENSORS_ONLY)
    assert not problems("import torch\ntorch.load(x, weights_only=True)\ntorch.save({}, x)", TENSORS_ONLY)
    assert problems("import torch\ntorch.load(x, weights_only=True)", "train/another.py")
