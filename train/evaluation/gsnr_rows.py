"""The rows that gradients are measured on: the same tokens of every cache that holds them, in the same batches.

Rows are ordered by a hash of the seed, the content of their conversation and their place in it, and dealt out to
batches in that order. So two caches of the same conversations, one by one in one and in blocks in the other, give the
same tokens in the same batches, each with its own activations: what differs between the two is the context. Separators
and BOS do not count as places, since blocks have them where conversations do not.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from shared.errors import DataError
from shared.format.tokens import TokenClass, TokenType
from shared.reading.cache import Cache, Split
from train.evaluation.files import conversation_keys
from train.evaluation.gsnr import MIN_BATCHES
from train.policy import TokenPolicy, keeps

Ints = npt.NDArray[np.int64]
Hashes = npt.NDArray[np.uint64]

SUBSETS = ("all", "all_without_first", "policy")
"""Every row, position 0 among them; all but position 0; those that an SAE's own token policy keeps."""


def shared_conversations(caches: Sequence[Cache], layer: int, split: Split) -> list[Hashes]:
    """Of each cache the keys of the conversations that gradients are measured on, ascending.

    They are those of its split that every other cache has too, of those it has any in common with. Plain text and
    chats share none: then each keeps its own.
    """
    own = []
    for cache in caches:
        rows = cache.rows(layer=layer, split=split)
        own.append(np.unique(conversation_keys(cache)[np.unique(cache.conversation(rows))]))
    kept = []
    for keys in own:
        for other in own:
            common = np.intersect1d(keys, other)
            keys = common if len(common) else keys
        kept.append(keys)
    return kept


def ordered_rows(cache: Cache, layer: int, split: Split, keys: Hashes, subset: str, seed: int,
                 policy: TokenPolicy, median: float) -> Ints:
    """The rows of a subset of these conversations, in the order in which batches take them."""
    rows = cache.rows(layer=layer, split=split)
    of_conversation = conversation_keys(cache)
    conversation = cache.conversation(rows)
    chosen = np.isin(of_conversation[conversation], keys)
    if subset == "all_without_first":
        chosen &= cache.token_class[rows] != TokenClass.FIRST
    elif subset == "policy":
        chosen &= keeps(cache, layer, policy, rows, median)
    rows, conversation = rows[chosen], conversation[chosen]
    place = _places(cache)[rows]
    hashes = _mixed(_mixed(of_conversation[conversation] ^ _mixed(np.array([seed], np.uint64))) ^ place)
    return rows[np.argsort(hashes, kind="stable")]


def _places(cache: Cache) -> Hashes:
    """The place of every row in its conversation ``[num_rows]``: tokens count from 0, separators and BOS beyond 2^32,
    so that they move no token."""
    is_bos = (cache.token_type & TokenType.BOS) != 0
    starts = cache.conversation_offset[:-1]
    conversation = cache.conversation(np.arange(cache.num_rows))
    found = []
    for counted in (~is_bos, is_bos):
        before = np.cumsum(counted) - counted
        found.append(before - before[starts[conversation]])
    places: Hashes = np.where(is_bos, found[1] + (1 << 32), found[0]).astype(np.uint64)
    return places


def _mixed(values: Hashes) -> Hashes:
    """SplitMix64's mixing of 64 bits (Steele, Lea and Flood 2014), which is one to one."""
    values = values + np.uint64(0x9E3779B97F4A7C15)
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def number_of_batches(rows: Sequence[Ints], batch_size: int, num_tokens: int, where: str) -> int:
    """Batches that each of several orders of rows has, as many as ``num_tokens`` make.

    Raises:
        DataError: they are too few for a variance.
    """
    fewest = min(map(len, rows))
    found = min(fewest, num_tokens) // batch_size
    if found < MIN_BATCHES:
        raise DataError(f"{where}: {min(fewest, num_tokens):,} rows are {found} batches of {batch_size:,}, expected at "
                        f"least {MIN_BATCHES}. Take smaller batches (--batch-size), more --tokens, or --split train.")
    return found
