"""The language model: found, loaded, and cut after the deepest layer that is wanted.

The only door to ``transformers``. Model code from a repository is never run.
"""

import contextlib
import io
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import safetensors.torch
import torch
import transformers
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoTokenizer

from harvest import embedded
from harvest.hub import download_model, kept_commit, resolve_commit
from harvest.template import ChatTokenizer
from shared.digests import file_digest, hex_digest
from shared.errors import RecipeError
from shared.registry import MODELS

transformers.utils.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()


@dataclass(frozen=True)
class ModelSource:
    """A model as a local folder, and where it came from."""

    name: str
    """Hub id, or the folder's name."""
    revision: str | None
    """Commit of a hub model; for the embedded one the package and the format it came in."""
    folder: Path

    def config(self) -> Any:
        """The model's configuration.

        Raises:
            RecipeError: the folder holds no readable config.json.
        """
        try:
            return AutoConfig.from_pretrained(self.folder, trust_remote_code=False)
        except (OSError, ValueError) as error:
            raise RecipeError(f"Cannot read the model's config in {self.folder}: {_first_line(error)}") from None

    def weights_digest(self) -> str:
        """xxh3-128 over the names and digests of the weight files.

        Raises:
            RecipeError: the folder holds no safetensors.
        """
        files = sorted(self.folder.glob("*.safetensors"))
        if not files:
            raise RecipeError(f"{self.folder} has no *.safetensors. Save the model with save_pretrained(...) first.")
        return hex_digest("".join(f"{path.name}:{file_digest(path)}\n" for path in files).encode())


def find_model(name: str, revision: str | None = None, kept: Mapping[str, Any] | None = None) -> ModelSource:
    """Resolve a model by alias, local folder or hub id; a hub model is downloaded.

    Args:
        kept: name and revision in the plan that is there; taken where ``revision`` is None and the name is the same.

    Raises:
        RecipeError: unknown alias or repository, or one that is gated.
        TryAgainError: the hub cannot be reached.
    """
    if Path(name).is_dir():
        if not (Path(name) / "config.json").is_file():
            raise RecipeError(f"The folder {name!r} is no model: it has no config.json.")
        return ModelSource(Path(name).resolve().name, None, Path(name))
    repo = MODELS[name].repo if name in MODELS else name
    if repo.startswith("embedded:"):
        return ModelSource(embedded.MODEL_NAME, embedded.MODEL_REVISION, _embedded_folder())
    if repo.count("/") != 1 or repo.startswith((".", "/")):
        known = ", ".join(MODELS)
        raise RecipeError(f"Unknown model {name!r}. Known aliases: {known}; or a hub id org/name, or a folder.")
    commit = kept_commit(repo, revision, kept) or resolve_commit(repo, revision, "model")
    return ModelSource(repo, commit, download_model(repo, commit))


def _embedded_folder() -> Path:
    """SmolLM2-135M-Instruct as safetensors, converted from its GGUF once.

    ``save_pretrained`` refuses a model loaded from GGUF, so the state dict is written as it is. The config
    is written last and makes the folder valid.
    """
    folder = embedded.MODELS_FOLDER / "smollm2-135m-instruct"
    if (folder / "config.json").is_file():
        return folder
    gguf = embedded.find_gguf()
    try:
        with contextlib.redirect_stderr(io.StringIO()):  # its progress bar is for a file that takes three seconds
            model = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    except ImportError as error:
        raise RecipeError(f"Reading the embedded model needs gguf and accelerate ({_first_line(error)}). "
                          "Run: make setup") from None
    folder.mkdir(parents=True, exist_ok=True)
    AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name).save_pretrained(folder)
    weights = {name: tensor.contiguous() for name, tensor in model.state_dict().items() if name != "lm_head.weight"}
    safetensors.torch.save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    config = {key: value for key, value in model.config.to_dict().items() if key != "quantization_config"}
    config["_name_or_path"] = "SmolLM2-135M-Instruct"
    (folder / "config.partial").write_text(json.dumps(config, indent=1, sort_keys=True))
    (folder / "config.partial").rename(folder / "config.json")
    return folder


def load_tokenizer(folder: Path) -> ChatTokenizer:
    """The model's tokenizer.

    Raises:
        RecipeError: the folder holds none that can be read.
    """
    try:
        return cast(ChatTokenizer, AutoTokenizer.from_pretrained(folder, trust_remote_code=False))
    except (OSError, ValueError, KeyError) as error:
        raise RecipeError(f"Cannot read the tokenizer in {folder}: {_first_line(error)}") from None


def save_tokenizer(tokenizer: ChatTokenizer, folder: Path) -> None:
    """Write the tokenizer's files and its template into a folder."""
    cast(Any, tokenizer).save_pretrained(folder)


@dataclass(frozen=True)
class CutModel:
    """A model without what comes after the deepest wanted layer."""

    model: torch.nn.Module
    layers: torch.nn.ModuleList
    """The decoder layers that are left."""


def load_model(
    source: ModelSource, deepest_layer: int, dtype: str, attention: str, device: torch.device
) -> CutModel:
    """Load the base model (no language-model head) and cut it after ``deepest_layer``.

    Raises:
        RecipeError: the weights cannot be loaded, or the decoder layers are not found.
    """
    try:
        model = AutoModel.from_pretrained(
            source.folder, dtype=getattr(torch, dtype), attn_implementation=attention, trust_remote_code=False
        )
    except (OSError, ValueError, safetensors.SafetensorError) as error:
        raise RecipeError(f"Cannot load the model in {source.folder}: {_first_line(error)}") from None
    cut = cut_model(model, deepest_layer)
    cut.model.to(device)
    return cut


def cut_model(model: torch.nn.Module, deepest_layer: int) -> CutModel:
    """Cut a base model after a layer, in place; what is dropped frees its memory.

    Raises:
        RecipeError: the decoder layers are not found.
    """
    num_layers = cast(Any, model).config.get_text_config().num_hidden_layers
    found = [
        (parent, name)
        for parent in model.modules()
        for name, child in parent.named_children()
        if isinstance(child, torch.nn.ModuleList) and len(child) == num_layers
    ]
    if len(found) != 1:
        kind = type(model).__name__
        raise RecipeError(f"{kind}: expected one list of {num_layers} decoder layers; found {len(found)}.")
    parent, name = found[0]
    layers = getattr(parent, name)[: deepest_layer + 1]
    setattr(parent, name, layers)
    return CutModel(model.eval().requires_grad_(False), layers)


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0][:300] if str(error).strip() else type(error).__name__
