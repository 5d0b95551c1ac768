"""SAEs that were made elsewhere, evaluated on a cache beside ours: ``runs/<cache>/layer<L>/foreign-<name>/``.

    foreign.json        the source and its digests, the token policy, what the source says it was made for; sealed
    eval.json ...       as beside an SAE of ours (`train.evaluation.evaluate`)

foreign.json stands in the place of run.json, which such an SAE does not have: it was not trained here. Its token policy
is the default one, with the median norm of the cache's training rows. The weights stay where they are.
"""

import re
from pathlib import Path
from typing import Any

from shared.digests import canonical_json, file_digest, hex_digest
from shared.errors import RecipeError
from shared.reading.cache import Cache
from shared.sealed_json import read_sealed, write_sealed
from shared.storage import make_folder
from train.export.exported import RUN, ExportedSAE
from train.export.loader import LAYOUTS, load_sae
from train.policy import TokenPolicy, median_norm
from train.training_set import layer_folder

FOREIGN = "foreign.json"

_ELSEWHERE = re.compile(r"hook_(?!resid_post|resid_pre)|(^|\.)(mlp|self_attn|attn|attention)(\b|_)")
"""Names of hook points that are not the residual stream between layers, as SAELens and dictionary_learning spell them.
"""


def add_foreign(runs: Path, cache: Cache, layer: int, folder: Path, source: str,
                commit: str | None = None) -> tuple[Path, list[str]]:
    """Make an SAE known to a layer's evaluation: the folder of its results, and where it does not fit the cache.

    Args:
        folder: where its files are.
        source: what it is called by: a path, a repository.
        commit: of the repository.

    Raises:
        RecipeError: its width is not the layer's, or it is of no kind that is known. StorageError: it is not there.
        CorruptError: its files do not fit each other. DataError: the layer has no training rows.
    """
    sae = load_sae(folder)
    if sae.d_in != cache.d_model:
        raise RecipeError(f"{source} takes activations of width {sae.d_in:,}, and those of {cache.path} are "
                          f"{cache.d_model:,} wide: it was made for another model.")
    files, _ = LAYOUTS[sae.layout]
    digests = {name: file_digest(folder / name) for name in files}
    words = re.sub(r"[^A-Za-z0-9._]+", "-", source.rstrip("/") if commit else folder.resolve().name).strip("-.")
    name = f"foreign-{words}-{hex_digest(canonical_json(digests))[:6]}"
    target = layer_folder(runs, cache, layer) / name
    make_folder(target)
    write_sealed(target / FOREIGN, {
        "format_version": 1,
        "kind": "foreign",
        "name": name,
        "architecture": sae.architecture,
        "layout": sae.layout,
        "source": source,
        "commit": commit,
        "folder": str(folder.resolve()),
        "files": digests,
        "made_for": vars(sae.made_for),
        "cache": cache.name,
        "cache_id": cache.cache_id,
        "layer": layer,
        "policy": TokenPolicy().model_dump(mode="json"),
        "resolved": {"median_norm": median_norm(cache, layer)},
        # How many latents died, and in how many tokens, is known to its trainer alone.
        "dead_train": None,
        "dead_train_window_tokens": None,
    })
    return target, mismatches(sae, cache, layer)


def read_record(folder: Path) -> dict[str, Any]:
    """run.json of an SAE of ours, or foreign.json of another's: they share the keys that an evaluation needs.

    Raises:
        StorageError: there is neither. CorruptError: it is damaged.
    """
    return read_sealed(folder / (FOREIGN if (folder / FOREIGN).exists() else RUN))


def mismatches(sae: ExportedSAE, cache: Cache, layer: int) -> list[str]:
    """Where the SAE's config says that it was made for something else than this layer; a line each."""
    made_for, found = sae.made_for, []
    model = cache.identity.get("model")
    name = str(model.get("name")) if isinstance(model, dict) else str(model)
    if made_for.model and _last(made_for.model) != _last(name):
        found.append(f"it was made for the model {made_for.model}, this cache is of {name}.")
    if made_for.layer is not None and made_for.layer != layer:
        found.append(f"it was made for the output of layer {made_for.layer}, this is layer {layer}.")
    if made_for.hook and _ELSEWHERE.search(made_for.hook):
        found.append(f"it was made for the hook point {made_for.hook}, a cache holds the residual stream.")
    return found


def _last(name: str) -> str:
    return name.rstrip("/").rsplit("/", 1)[-1].lower()
