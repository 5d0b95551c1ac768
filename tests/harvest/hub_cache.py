"""A hub cache on disk, as huggingface_hub leaves it: snapshots by commit, branches as refs. No network."""

import json
import shutil
import sys
from pathlib import Path

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def add_snapshot(hub: Path, repo: str, folder: Path, commit: str = COMMIT, branch: str = "main") -> Path:
    """Copy a model folder into the cache as one commit of ``repo``, to which ``branch`` points from now on."""
    root = hub / f"models--{repo.replace('/', '--')}"
    (root / "refs").mkdir(parents=True, exist_ok=True)
    (root / "refs" / branch).write_text(commit)
    return Path(shutil.copytree(folder, root / "snapshots" / commit))


def use(monkeypatch, tmp_path: Path) -> Path:
    """Make an empty hub cache the one that is used, with nowhere of the real one to write code to."""
    hub = tmp_path / "hub"
    modules = tmp_path / "modules"
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(hub))
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(modules))
    monkeypatch.setattr(sys, "path", [*sys.path])
    for name in [name for name in sys.modules if name.startswith("transformers_modules")]:
        monkeypatch.delitem(sys.modules, name)
    return hub


CONFIGURATION = """
from transformers import LlamaConfig

open({canary!r}, "a").write("configuration ")

class PlantedConfig(LlamaConfig):
    model_type = "planted"
"""

MODELING = """
from transformers import LlamaModel
from .configuration_planted import PlantedConfig

open({canary!r}, "a").write("modeling ")

class PlantedModel(LlamaModel):
    config_class = PlantedConfig
"""

TOKENIZATION = """
from transformers import PreTrainedTokenizerFast

open({canary!r}, "a").write("tokenization ")

class PlantedTokenizer(PreTrainedTokenizerFast):
    pass
"""


def plant_code(folder: Path, canary: Path, model: bool = True, tokenizer: bool = True, prefix: str = "") -> Path:
    """Make a saved tiny Llama one that names Python code of its own, which writes to ``canary`` when it is run.

    ``prefix``: "org/other--" for code of another repository.
    """
    if model:
        config = json.loads((folder / "config.json").read_text())
        config |= {"model_type": "planted", "architectures": ["PlantedModel"], "auto_map": {
            "AutoConfig": f"{prefix}configuration_planted.PlantedConfig",
            "AutoModel": f"{prefix}modeling_planted.PlantedModel"}}
        (folder / "config.json").write_text(json.dumps(config))
    if tokenizer:
        config = json.loads((folder / "tokenizer_config.json").read_text())
        config |= {"tokenizer_class": "PlantedTokenizer",
                   "auto_map": {"AutoTokenizer": [None, f"{prefix}tokenization_planted.PlantedTokenizer"]}}
        (folder / "tokenizer_config.json").write_text(json.dumps(config))
    for name, text in (("configuration", CONFIGURATION), ("modeling", MODELING), ("tokenization", TOKENIZATION)):
        (folder / f"{name}_planted.py").write_text(text.format(canary=str(canary)))
    return folder
