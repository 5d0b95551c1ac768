"""Going on with a cache from its plan alone: the model that the plan names, and units computed with it.

No data set and no tokenizer is needed: the token ids stand in the cache.
"""

from collections.abc import Sequence
from pathlib import Path

from harvest import embedded
from harvest.allocator import keep_memory_flat
from harvest.device import Device
from harvest.forward import Forward
from harvest.model import ModelSource, find_model, load_model
from harvest.run import fill
from shared.errors import IdentityError, RecipeError
from shared.format.identity import differences, two_columns
from shared.format.plan import Pass, Plan
from shared.registry import MODELS
from shared.writing.claims import Work


def find_planned_model(
    cache: Path, plan: Plan, where: str | None = None, trust_remote_code: bool = False
) -> ModelSource:
    """The model that a cache was made with, checked by the digest of its weights.

    Args:
        where: alias, hub id or folder to take it from; needed where the plan names a folder, whose place it
            does not say.
        trust_remote_code: run the model's own code, at the plan's commit, if the cache was made that way. That
            its maker did so is no reason to do it here.

    Raises:
        RecipeError: a folder is needed, ``where`` is no model, or the model's own code would have to be run.
        IdentityError: what was found is another model; names the fields that differ.
        TryAgainError: the hub cannot be reached.
    """
    known_as = plan.identity["model"]
    name, revision = known_as["name"], known_as["revision"]
    if known_as.get("trust_remote_code"):
        if not trust_remote_code:
            raise RecipeError(f"{cache} was made with Python code that comes with {name!r} at commit {revision}. It is "
                              "run only if you say so; once you have read it: --trust-remote-code")
        source = find_model(where or name, revision, None, trust_remote_code)
    elif where is not None:
        source = find_model(where, None, known_as)
    elif (name, revision) == (embedded.MODEL_NAME, embedded.MODEL_REVISION):
        alias = next(alias for alias, entry in MODELS.items() if entry.repo.startswith("embedded:"))
        source = find_model(alias)
    elif revision is None:
        raise RecipeError(f"{cache} was made with a model in a local folder called {name!r}. Say where it is: "
                          f"--model path/to/{name}")
    else:
        source = find_model(name, revision)
    found = {"weights": source.weights_digest()}
    if "config" in known_as:
        found["config"] = source.config_digest()
    if different := differences({key: known_as[key] for key in found}, found, "model"):
        raise IdentityError(f"{source.folder} is not the model that {cache} was made with, {name!r}:\n"
                            + "\n".join(two_columns(different, "there", "found"))
                            + "\nName the one that it was made with: --model path/to/folder")
    return source


def compute(
    cache: Path, plan: Plan, pass_: Pass, todo: Sequence[Work], source: ModelSource, device: Device, writer: str,
    batch_tokens: int | None = None,
) -> None:
    """Compute and commit units of a pass, sharing them with other writers; see `harvest.run.fill`."""
    keep_memory_flat()
    cut = load_model(source, max(pass_.layers), pass_.compute_dtype, pass_.attention, device.device)
    forward = Forward(cut, pass_.layers, device.device)
    fill(cache, plan, pass_, todo, forward, device, writer, batch_tokens=batch_tokens)
