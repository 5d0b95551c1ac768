"""The caches behind a comparison: found by their ids, of one model, and none trained on what is compared on."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from pipelines.comparison.members import Member
from shared.errors import DataError, IdentityError, RecipeError, UserError
from shared.format.layout import PLAN
from shared.reading.cache import Cache, open_cache
from train.choose_cache import CACHES, choose_cache
from train.evaluation.files import conversation_keys


def find_caches(members: Sequence[Member], names: Sequence[str]) -> dict[str, Cache]:
    """The caches of the SAEs by cache_id: those named, and those under caches/.

    Raises:
        RecipeError: one that is named is not there or is of none of the SAEs; or one is not found, of several.
    """
    wanted: dict[str, Member] = {}
    for member in members:
        wanted.setdefault(member.cache_id, member)
    found: dict[str, Cache] = {}
    for name in names:
        cache = choose_cache(name)
        if cache.cache_id not in wanted:
            raise RecipeError(f"--cache {name!r} is of none of the SAEs that are compared: its cache_id is "
                              f"{cache.cache_id[:12]}. Theirs: "
                              + "; ".join(f"{member.folder} {key[:12]}" for key, member in wanted.items()) + ".")
        found[cache.cache_id] = cache
    for plan in sorted(CACHES.glob(f"*/{PLAN}")):
        if wanted.keys() <= found.keys():
            break
        try:
            cache = open_cache(plan.parent)
        except UserError:  # a damaged one must not hide the others
            continue
        if cache.cache_id in wanted:
            found.setdefault(cache.cache_id, cache)
    missing = [key for key in wanted if key not in found]
    if missing and len(wanted) > 1:
        member = wanted[missing[0]]
        raise RecipeError(f"The cache of {member.folder} (cache_id {missing[0][:12]}) is not under {CACHES}/. SAEs of "
                          "several caches are compared only where these can be looked at: --cache NAME|PATH")
    return {key: found[key] for key in wanted if key in found}


def check_caches(members: Sequence[Member], caches: dict[str, Cache]) -> list[str]:
    """Make sure that the caches are of one model and that none trained on the conversations that are compared on.

    Returns:
        What is to be said about them: a sentence each.

    Raises:
        IdentityError: they are of different models. DataError: one trained on what is held out here.
    """
    held_out = members[0].sums.keys
    models = {key: _model(cache) for key, cache in caches.items()}
    first, others = next(iter(caches), ""), [*caches][1:]
    for other in others:
        if models[other] != models[first]:
            raise IdentityError(f"{caches[first].path} is of the model {_words(caches[first])} and "
                                f"{caches[other].path} of {_words(caches[other])}: their activations are different "
                                "ones. Compare SAEs of one model.")
    for key, cache in caches.items():
        seen = int(np.isin(held_out, training_keys(cache)).sum())
        if seen:
            member = next(member for member in members if member.cache_id == key)
            raise DataError(f"{member.folder} was trained on {seen:,} of the {len(held_out):,} conversations that are "
                            f"compared on: {cache.path} holds them for training. Its figures would be too good. "
                            "Compare SAEs of caches that hold out the same conversations.")
    notes = [f"{member.folder} was made elsewhere: whether its training saw what is held out here is not known."
             for member in members if "source" in member.run.evaluation]
    notes += [f"{member.folder} starts with the weights of another SAE, {member.record['warm_start']['folder']}: "
              "whether that one's training saw what is held out here is not looked at."
              for member in members if member.record.get("warm_start")]
    if not caches:
        notes.append(f"The cache {members[0].run.evaluation['cache']} is not here: that training saw none of its "
                     "held-out conversations was looked at when the SAEs were evaluated.")
    if others:
        names = ", ".join(sorted(str(cache.path) for cache in caches.values()))
        notes.append(f"SAEs of {len(caches)} caches of the same model are compared: {names}. They hold out the same "
                     "conversations, by the hash of their content, and these are paired. Their activations differ "
                     "where the caches do, so that mse and explained variance are each of the SAE's own activations.")
    return notes


def training_keys(cache: Cache) -> np.ndarray[Any, np.dtype[np.uint64]]:
    """The hashes of the conversations that a cache's plan trains on."""
    keys = conversation_keys(cache)
    if cache.num_train_rows == cache.num_rows:
        return keys
    return keys[: int(cache.conversation(np.array([cache.num_train_rows]))[0])]


def _model(cache: Cache) -> Any:
    """What tells models apart: the digest of the weights, wherever they lie."""
    model = cache.identity.get("model")
    return model.get("weights") or model.get("name") if isinstance(model, dict) else model


def _words(cache: Cache) -> str:
    model = cache.identity.get("model")
    return f"{model.get('name')} ({str(_model(cache))[:12]})" if isinstance(model, dict) else str(model)
