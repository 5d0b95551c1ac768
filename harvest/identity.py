"""The identity of a cache: everything that decides its rows, and the guard that keeps all else out.

What is named in it is known by its content, not by where it lies: a model folder or a data file that was
moved or renamed is the same, and so are other paths to it, another working folder, other modification times.
A hub model or data set is known by its name and commit. Device, threads and versions are no part of it: they
stand in each unit's record, and a change only warns.
"""

import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from harvest.config import HarvestConfig
from harvest.conversation import ROLES
from harvest.mixture import Mixture
from harvest.model import ModelSource, save_tokenizer
from harvest.order import Order
from harvest.selection import HELD_OUT_CONVERSATIONS, HELD_OUT_SHARE
from harvest.sources import Source
from harvest.template import ChatTokenizer
from shared.digests import canonical_json, hex_digest
from shared.errors import CorruptError, IdentityError, StorageError
from shared.format.identity import differences, two_columns
from shared.format.layout import TOKENIZER
from shared.format.plan import Plan

TOKENIZER_CONFIG = "tokenizer_config.json"

_TEMPLATE_TOKENS = ("bos_token", "eos_token", "pad_token", "unk_token")
"""Settings of the tokenizer that a chat template sees as variables."""


_NORMALISATION = ("merge_same_role", "fold_system", "drop_default_system")
"""Switches that are part of the identity where they are on: caches from before there were any keep theirs."""


def make_identity(
    config: HarvestConfig, model: ModelSource, source: Source | Mixture, order: Order, tokenizer: str,
    sizes: dict[str, Any],
) -> dict[str, Any]:
    """Everything that decides the rows of a cache, as it is hashed into the cache id."""
    known_as: dict[str, Any] = {"name": model.name, "revision": model.revision, "weights": model.weights_digest()}
    if model.revision is None:  # a local folder: no commit says what its config is
        known_as["config"] = model.config_digest()
    if model.trust_remote_code:
        known_as["trust_remote_code"] = True
    return {
        "model": known_as,
        "tokenizer": tokenizer,
        "template_variables": config.template_variables,
        "template_date": config.template_date.isoformat(),
        "dataset": source.identity,
        **({"roles": sorted(config.roles)} if {*config.roles} != {*ROLES} else {}),
        **{name: True for name in _NORMALISATION if getattr(config, name)},
        **({"deduplicate": config.deduplicate.model_dump(mode="json")} if config.deduplicate else {}),
        "order": order.identity,
        "seed": config.seed,
        "max_length": config.max_length,
        "held_out": {
            "share": HELD_OUT_SHARE,
            "max_conversations": HELD_OUT_CONVERSATIONS,
            "max_rows": config.held_out_rows,
        },
        "control_tokens": config.control_tokens,
        **sizes,
    }


def tokenizer_files(tokenizer: ChatTokenizer) -> dict[str, bytes]:
    """The files of a saved tokenizer, template included, by name."""
    with TemporaryDirectory() as folder:
        save_tokenizer(tokenizer, Path(folder))
        return {path.name: path.read_bytes() for path in sorted(Path(folder).iterdir()) if path.is_file()}


def tokenizer_digest(files: dict[str, bytes]) -> str:
    """xxh3-128 of what decides token ids: the vocabulary and rules, and the chat template.

    tokenizer_config.json is left out: transformers writes notes of its own into it, version by version.
    """
    return hex_digest(canonical_json(_file_digests(files)))


def check_identity(cache: Path, plan: Plan, wanted: dict[str, Any], files: dict[str, bytes]) -> None:
    """Compare the identity of the plan that is there with the one of this run.

    Args:
        wanted: what `make_identity` says of this run.
        files: the files of its tokenizer.

    Raises:
        IdentityError: naming each field that differs, with both values.
    """
    there, asked = dict(plan.identity), dict(wanted)
    for part, digest in (("model", "weights"), ("dataset", "xxh3")):
        old, new = there.get(part), asked[part]
        if not isinstance(old, dict):
            continue
        new = _renamed(old, new, digest)
        if part == "model" and "config" not in old:  # a cache from before this was looked at
            new = {key: value for key, value in new.items() if key != "config"}
        asked[part] = new
    there["tokenizer"], asked["tokenizer"] = _tokenizer_parts(cache, plan, wanted["tokenizer"], files)
    found = differences(there, asked)
    if found:
        budget = [one.field for one in found] == ["batch_tokens"]
        raise IdentityError(
            f"{cache} was made from another configuration:\n" + "\n".join(two_columns(found))
            + ("\nTo go on with this batch budget all the same: --allow batch-budget" if budget else "")
            + "\nHarvest into another cache (CACHE=name), or start this one over: --fresh"
        )


def _renamed(old: dict[str, Any], new: dict[str, Any], digest: str) -> dict[str, Any]:
    """What is asked, under the name of what is there where it was only moved or renamed: the content counts."""
    parts, others = old.get("mixture"), new.get("mixture")
    if isinstance(parts, dict) and isinstance(others, dict):
        mixture = {number: _renamed(parts[number], part, digest) if isinstance(parts.get(number), dict) else part
                   for number, part in others.items()}
        return {**new, "name": old.get("name"), "mixture": mixture}  # its name is those of the parts
    is_local = old.get("revision") is None and new.get("revision") is None
    if is_local and digest in old and old[digest] == new.get(digest):
        return {**new, "name": old.get("name")}
    return new


def _tokenizer_parts(
    cache: Path, plan: Plan, wanted: str, files: dict[str, bytes]
) -> tuple[dict[str, str], dict[str, str]]:
    """What there is to compare of two tokenizers, by name: template tokens, and the files where they differ."""
    path = cache / TOKENIZER / TOKENIZER_CONFIG
    try:
        data = path.read_bytes()
    except OSError as error:
        raise StorageError(f"Cannot read {path}: {error.strerror}. Copy the cache again, or: --fresh") from error
    there, asked = _template_tokens(data, path), _template_tokens(files[TOKENIZER_CONFIG], Path(TOKENIZER_CONFIG))
    if plan.identity.get("tokenizer") != wanted:
        prefix = f"{TOKENIZER}/"
        old = {name.removeprefix(prefix): digest for name, digest in plan.digests.items() if name.startswith(prefix)}
        old.pop(TOKENIZER_CONFIG, None)
        there, asked = there | old, asked | _file_digests(files)
    return there, asked


def _template_tokens(data: bytes, path: Path) -> dict[str, str]:
    try:
        config = json.loads(data)
        values = {name: config.get(name) for name in _TEMPLATE_TOKENS}
    except (ValueError, AttributeError) as error:
        raise CorruptError(f"{path} is damaged: no JSON object ({error}). Copy the cache again, or: --fresh") from None
    return {name: value["content"] if isinstance(value, dict) else value for name, value in values.items() if value}


def _file_digests(files: dict[str, bytes]) -> dict[str, str]:
    return {name: hex_digest(data) for name, data in files.items() if name != TOKENIZER_CONFIG}
