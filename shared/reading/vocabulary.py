"""Token ids as text, from the vocabulary and the decoder in a cache's tokenizer.json, and from nothing else of it.

A tokenizer.json can hold rules that take all memory when they are loaded (a precompiled normaliser) or applied
(a chain of replacements, each making its text longer), and the library that runs them ends the process then. So
the file is parsed here: of the vocabulary only the tokens are taken, of the decoder only steps that are known
and never lengthen a text much. Rules for encoding are not loaded; to encode, use the model's own tokenizer.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from shared.bounded_json import parse_json
from shared.digests import hex_digest
from shared.errors import CorruptError
from shared.format.layout import TOKENIZER
from shared.plain_files import read_known

TOKENIZER_JSON = f"{TOKENIZER}/tokenizer.json"

_MAX_BYTES = 64 << 20
_MAX_VALUES = 4_000_000
_MAX_CONTAINERS = 1_000_000
"""The largest of known models (262,144 tokens, 580,000 merges) has 33 MB, and half as many of both."""
_MAX_TOKEN = 4096
_MAX_STEPS = 8
_STEPS = ("ByteLevel", "ByteFallback", "Fuse", "Strip", "Metaspace", "WordPiece", "BPEDecoder", "Replace", "Sequence")


class Vocabulary:
    """The tokens that ids stand for, and how their texts are joined."""

    def __init__(self, tokens: Mapping[int, str], decoder: Mapping[str, Any] | None) -> None:
        self._tokens = tokens
        self._decoder = None if decoder is None else _load_decoder(decoder)

    def decode(self, ids: Iterable[int]) -> str:
        """The text of some tokens, control tokens included; ids that are no token have none."""
        tokens = [self._tokens[number] for number in ids if number in self._tokens]
        return " ".join(tokens) if self._decoder is None else str(self._decoder.decode(tokens))

    def decode_each(self, ids: Sequence[int]) -> list[str]:
        """The text of every token by itself."""
        return [self.decode([number]) for number in ids]


def read_vocabulary(cache: Path, digests: Mapping[str, str]) -> Vocabulary:
    """Read a cache's tokenizer.json.

    Args:
        digests: those of the plan.

    Raises:
        CorruptError: the file is not the one that the plan recorded, or nothing that we decode with.
        StorageError: it cannot be read.
    """
    path = cache / TOKENIZER_JSON
    data = read_known(path, _MAX_BYTES)
    if hex_digest(data) != digests.get(TOKENIZER_JSON):
        raise CorruptError(f"{path} is damaged: its bytes are not those that the plan recorded.")
    try:
        content = parse_json(data, _MAX_VALUES, _MAX_CONTAINERS, max_nesting=20)
        del data
        tokens, decoder = _tokens_of(content), content.get("decoder")
        if any(len(token) > _MAX_TOKEN for token in tokens.values()):
            raise ValueError(f"a token is longer than {_MAX_TOKEN:,} characters")
        if decoder is not None and _count_steps(decoder) > _MAX_STEPS:
            raise ValueError(f"its decoder has more than {_MAX_STEPS} steps")
        return Vocabulary(tokens, decoder)
    except (ValueError, TypeError, KeyError, AttributeError, MemoryError) as error:
        raise CorruptError(f"{path} is no tokenizer that text can be shown with: {error}.") from None


def _tokens_of(content: Mapping[str, Any]) -> dict[int, str]:
    """Every token of the model and those added to it, by id."""
    vocabulary = content["model"]["vocab"]
    pairs: list[tuple[str, int]]
    if isinstance(vocabulary, dict):
        pairs = list(vocabulary.items())
    else:  # Unigram: a list of (token, score), whose places are the ids
        pairs = [(entry[0], number) for number, entry in enumerate(vocabulary)]
    pairs += [(added["content"], added["id"]) for added in content.get("added_tokens") or ()]
    if not all(isinstance(token, str) and type(number) is int for token, number in pairs):
        raise ValueError("its vocabulary is no list of tokens")
    return {number: token for token, number in pairs}


def _count_steps(decoder: Mapping[str, Any]) -> int:
    """The steps of a decoder, each of a kind that we know."""
    kind = decoder["type"]
    if kind not in _STEPS:
        raise ValueError(f"its decoder has a step {str(kind)[:100]!r}, expected one of {', '.join(_STEPS)}")
    if kind == "Replace":
        replaced = decoder["pattern"].get("String")  # a regular expression can take for ever
        if not replaced or len(decoder["content"]) > len(replaced):
            raise ValueError("its decoder replaces by a regular expression, or by something longer")
    return sum(map(_count_steps, decoder["decoders"])) if kind == "Sequence" else 1


def _load_decoder(decoder: Mapping[str, Any]) -> Any:
    """The library's decoder of that description; the tokenizer around it has one token and no rules."""
    model = {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "a"}
    try:
        return Tokenizer.from_str(json.dumps({"version": "1.0", "model": model, "decoder": decoder})).decoder
    except Exception as error:  # the library raises nothing more special
        raise ValueError(f"its decoder cannot be loaded ({error})") from None
