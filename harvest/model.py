"""The language model: found, loaded, and cut after the deepest layer that is wanted.

The only door to ``transformers``. Python code that comes with a model is not run, unless the recipe says so for
a hub model at one commit (``trust_remote_code``); that of a local folder never is.
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
from harvest.remote_code import check_pinned, check_request, explain_refusal
from harvest.template import ChatTokenizer
from shared.digests import canonical_json, file_digest, hex_digest
from shared.errors import RecipeError
from shared.registry import MODELS

transformers.utils.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()

_NOTES = {"transformers_version", "torch_dtype", "dtype", "use_cache"}
"""Keys of a config.json that leave the activations as they are: we say the number format ourselves."""

_INDEX = "model.safetensors.index.json"


@dataclass(frozen=True)
class ModelSource:
    """A model as a local folder, and where it came from."""

    name: str
    """Hub id, or the folder's name."""
    revision: str | None
    """Commit of a hub model; for the embedded one the package and the format it came in."""
    folder: Path
    trust_remote_code: bool = False
    """Run the Python code of the repository. Only for a hub model at a commit that the user has named."""

    def config(self) -> Any:
        """The model's configuration.

        Raises:
            RecipeError: the folder holds no readable config.json.
        """
        try:
            return AutoConfig.from_pretrained(self.folder, trust_remote_code=self.trust_remote_code)
        except (OSError, ValueError) as error:
            raise RecipeError(f"Cannot read the model's config in {self.folder}: {self._explain(error)}") from None

    def tokenizer(self) -> ChatTokenizer:
        """The model's tokenizer.

        Raises:
            RecipeError: the folder holds none that can be read.
        """
        try:
            tokenizer = AutoTokenizer.from_pretrained(self.folder, trust_remote_code=self.trust_remote_code)
        except (OSError, ValueError, KeyError) as error:
            raise RecipeError(f"Cannot read the tokenizer in {self.folder}: {self._explain(error)}") from None
        return cast(ChatTokenizer, tokenizer)

    def _explain(self, error: Exception) -> str:
        """What transformers says; where it wants to run code that comes with the model, what to do about it."""
        if not self.trust_remote_code and "custom code" in str(error):
            return explain_refusal(self.revision)
        return f"{_first_line(error)} Expected a folder as save_pretrained(...) leaves it."

    def config_digest(self) -> str:
        """xxh3-128 of what config.json says of the network, without notes that transformers leaves in it."""
        try:
            config = json.loads((self.folder / "config.json").read_bytes())
            deciding = {key: value for key, value in config.items() if key not in _NOTES and not key.startswith("_")}
            return hex_digest(canonical_json(deciding))
        except (OSError, ValueError, AttributeError) as error:
            raise RecipeError(f"Cannot read the model's config in {self.folder}: {_first_line(error)} Save the model "
                              "with save_pretrained(...) again.") from None

    def weights_digest(self) -> str:
        """xxh3-128 over the names and digests of the weight files.

        Raises:
            RecipeError: the folder holds no safetensors, or not all that its index names.
        """
        files = sorted(self.folder.glob("*.safetensors"))
        if not files:
            raise RecipeError(f"{self.folder} has no *.safetensors. Save the model with save_pretrained(...) first.")
        if missing := sorted(self._indexed_files() - {path.name for path in files}):
            raise RecipeError(f"{self.folder} has no {missing[0]}, one of the weight files that {_INDEX} names. "
                              "Download or save the model again, all of it.")
        return hex_digest("".join(f"{path.name}:{file_digest(path)}\n" for path in files).encode())


    def _indexed_files(self) -> set[str]:
        """The names of the weight files, where the folder has an index of them."""
        path = self.folder / _INDEX
        if not path.exists():
            return set()
        try:
            return {str(name) for name in json.loads(path.read_bytes())["weight_map"].values()}
        except (OSError, ValueError, LookupError, TypeError, AttributeError):
            raise RecipeError(f"Cannot read {path}. Download or save the model again.") from None


def find_model(
    name: str, revision: str | None = None, kept: Mapping[str, Any] | None = None, trust_remote_code: bool = False
) -> ModelSource:
    """Resolve a model by alias, local folder or hub id; a hub model is downloaded.

    Args:
        kept: name and revision in the plan that is there; taken where ``revision`` is None and the name is the same.
        trust_remote_code: run the model's own code; ``revision`` must then be the commit of a hub model.

    Raises:
        RecipeError: unknown alias or repository, one that is gated, or code that no commit pins.
        TryAgainError: the hub cannot be reached.
    """
    repo = MODELS[name].repo if name in MODELS else name
    if trust_remote_code:
        check_request(name, revision, is_hub_model=not Path(name).is_dir() and not repo.startswith("embedded:"))
    if Path(name).is_dir():
        if not (Path(name) / "config.json").is_file():
            raise RecipeError(f"The folder {name!r} is no model: it has no config.json. Save one there with "
                              "save_pretrained(...), or give a hub id: MODEL=org/name")
        return ModelSource(Path(name).resolve().name, None, Path(name))
    if repo.startswith("embedded:"):
        return ModelSource(embedded.MODEL_NAME, embedded.MODEL_REVISION, _embedded_folder())
    if repo.count("/") != 1 or repo.startswith((".", "/")):
        known = ", ".join(MODELS)
        raise RecipeError(f"Unknown model {name!r}. Known aliases: {known}; or a hub id org/name, or a folder.")
    commit = kept_commit(repo, revision, kept) or resolve_commit(repo, revision, "model")
    folder = download_model(repo, commit, with_code=trust_remote_code)
    if trust_remote_code:
        check_pinned(repo, folder)
    return ModelSource(repo, commit, folder, trust_remote_code)


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
            model = AutoModelForCausalLM.from_pretrained(
                gguf.parent, gguf_file=gguf.name, dtype=torch.float32, trust_remote_code=False
            )
    except ImportError as error:
        raise RecipeError(f"Reading the embedded model needs gguf and accelerate ({_first_line(error)}). "
                          "Run: make setup") from None
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name, trust_remote_code=False)
    tokenizer.save_pretrained(folder)
    weights = {name: tensor.contiguous() for name, tensor in model.state_dict().items() if name != "lm_head.weight"}
    safetensors.torch.save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    config = {key: value for key, value in model.config.to_dict().items() if key != "quantization_config"}
    config["_name_or_path"] = "SmolLM2-135M-Instruct"
    (folder / "config.partial").write_text(json.dumps(config, indent=1, sort_keys=True))
    (folder / "config.partial").rename(folder / "config.json")
    return folder


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
        RecipeError: the weights cannot be loaded or are not those of config.json, or the decoder layers are not
            found.
    """
    model, missing = _load(AutoModel, source, dtype, attention)
    cut = cut_model(model, deepest_layer)
    _check_complete(source, missing & {*cut.model.state_dict()})
    cut.model.to(device)
    if device.type == "cpu":
        for parameter in cut.model.parameters():
            # The weights are a map of the file. Read whole, one value a page, memory is at the start what it
            # will be at the end, instead of growing as more of the vocabulary is met.
            parameter.view(-1)[::1024].sum()
    return cut


def load_language_model(source: ModelSource, dtype: str, attention: str, device: torch.device) -> torch.nn.Module:
    """Load a model whole, with its language-model head: what predicts tokens.

    Raises:
        RecipeError: the weights cannot be loaded or are not those of config.json.
    """
    model, missing = _load(AutoModelForCausalLM, source, dtype, attention)
    _check_complete(source, missing)
    loaded: torch.nn.Module = model.eval().requires_grad_(False).to(device)
    return loaded


def _load(kind: Any, source: ModelSource, dtype: str, attention: str) -> tuple[Any, set[str]]:
    """A model by one of transformers' auto classes, and the names of the tensors that its files lack."""
    try:
        model, found = kind.from_pretrained(
            source.folder, dtype=getattr(torch, dtype), attn_implementation=attention,
            trust_remote_code=source.trust_remote_code, use_safetensors=True, output_loading_info=True,
        )
    except RuntimeError as error:
        if "ignore_mismatched_sizes" not in str(error):  # transformers' hint for who trains, after a long table
            raise
        raise RecipeError(f"Cannot load the model in {source.folder}: its weights do not have the shapes that its "
                          "config.json says. Download or save it again, both together.") from None
    except (OSError, ValueError, safetensors.SafetensorError) as error:
        raise RecipeError(f"Cannot load the model in {source.folder}: {source._explain(error)}") from None
    return model, {*found["missing_keys"]}


def _check_complete(source: ModelSource, missing: set[str]) -> None:
    """Refuse a model whose files lack tensors: transformers draws these at random, and only warns.

    Raises:
        RecipeError: they do.
    """
    if missing:
        raise RecipeError(f"Cannot load the model in {source.folder}: its weights lack {len(missing)} tensors that its "
                          f"config.json asks for, the first is {min(missing)}. Download or save it again.")


def cut_model(model: torch.nn.Module, deepest_layer: int) -> CutModel:
    """Cut a base model after a layer, in place; what is dropped frees its memory.

    Raises:
        RecipeError: the decoder layers are not found.
    """
    parent, name = find_layers(model)
    layers = getattr(parent, name)[: deepest_layer + 1]
    setattr(parent, name, layers)
    return CutModel(model.eval().requires_grad_(False), layers)


def find_layers(model: torch.nn.Module) -> tuple[torch.nn.Module, str]:
    """Where the list of a model's decoder layers is: the module that holds it, and its name there.

    Raises:
        RecipeError: it is not found.
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
        raise RecipeError(f"{kind}: expected one list of {num_layers} decoder layers; found {len(found)}. Use a "
                          "decoder-only model that transformers knows.")
    return found[0]


def _first_line(error: Exception) -> str:
    line = str(error).strip().splitlines()[0].rstrip(" :")[:300] if str(error).strip() else type(error).__name__
    return line if line.endswith((".", "!", "?")) else f"{line}."
