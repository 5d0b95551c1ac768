"""Conversation -> token ids through the model's chat template, with the kind of every token.

The ids are those of ``tokenizer.apply_chat_template`` for every ordinary conversation. Where the contents
stand in the rendered text is found with two private-use characters put around each content, inside its
own white space (Llama's template trims); what remains after stripping them must equal the plain rendering.
"""

import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import date
from typing import Any, Literal, Protocol, cast

import jinja2
import numpy as np
import numpy.typing as npt

from harvest.conversation import Conversation, Message, Skipped
from harvest.spans import Content, SpanFinder, Spans, without_default_turn
from shared.errors import RecipeError
from shared.format.tokens import CONTENT_CLASSES, TokenClass, TokenType

ControlPolicy = Literal["escape", "keep", "reject"]
Offsets = Sequence[tuple[int, int]]

TEMPLATE_ERRORS = (jinja2.TemplateError, ArithmeticError, AttributeError, LookupError, RecursionError, TypeError,
                   ValueError)
"""What a template raises for a conversation that it was not written for."""

_PRIVATE_USE = [chr(code) for code in range(0xF0000, 0xF0008)]


class ChatTokenizer(Protocol):
    """What we use of a transformers tokenizer backed by the tokenizers library."""

    bos_token: str | None
    chat_template: Any
    added_tokens_decoder: dict[int, Any]
    backend_tokenizer: Any

    @property
    def special_tokens_map(self) -> dict[str, Any]:
        """What a template sees as bos_token, eos_token, ..."""

    def get_chat_template(self) -> str:
        """The chat template's text, of several the default one.

        Raises:
            ValueError: there are several, and no default one.
        """


@dataclass(frozen=True)
class Encoded:
    """A conversation as rows of the plan; every array has one entry a token."""

    token_id: npt.NDArray[np.int32]
    token_class: npt.NDArray[np.uint8]
    token_type: npt.NDArray[np.uint16]
    role: npt.NDArray[np.uint8]
    turn: npt.NDArray[np.uint16]

    def __len__(self) -> int:
        return len(self.token_id)

    def cut(self, length: int) -> "Encoded":
        """The first ``length`` tokens."""
        return Encoded(*(getattr(self, name)[:length] for name in self.__dataclass_fields__))

    def as_sequence(self) -> "Encoded":
        """The same as a sequence of its own: position 0 is `FIRST`. What else begins one, `harvest.order` says."""
        token_class, token_type = self.token_class.copy(), self.token_type.copy()
        token_class[:1] = TokenClass.FIRST
        token_type[:1] |= np.uint16(TokenType.FIRST)
        return replace(self, token_class=token_class, token_type=token_type)


class ChatTemplate:
    """A tokenizer's chat template with fixed variables: it never sees the clock.

    Raises:
        RecipeError: the tokenizer has no chat template, or one that cannot be used, or is not one of the tokenizers
            library; or the default system prompt is to be left out and is no turn of its own.
    """

    def __init__(
        self, tokenizer: ChatTokenizer, variables: dict[str, str], policy: ControlPolicy = "escape",
        today: date = date(2024, 7, 26), drop_default_system: bool = False,
    ) -> None:
        self._made_of = (tokenizer, variables, policy, today, drop_default_system)
        if not getattr(tokenizer, "chat_template", None):
            raise RecipeError(
                "The model's tokenizer has no chat template: a base model, or an instruct model saved without one. "
                "Use the instruct variant of the model."
            )
        if getattr(tokenizer, "backend_tokenizer", None) is None:
            raise RecipeError("The model's tokenizer has no tokenizer.json, which exact token spans need. "
                              "Use a model with a fast tokenizer.")
        self._tokenizer = tokenizer
        self._backend = tokenizer.backend_tokenizer
        from transformers.utils.chat_template_utils import _compile_jinja_template

        try:
            self._template = _compile_jinja_template(tokenizer.get_chat_template())
        except (jinja2.TemplateError, ValueError) as error:
            reason = " ".join(str(error).split())[:200].rstrip(".")
            raise RecipeError(f"The model's chat template cannot be used: {reason}. Expected one Jinja template; mend "
                              "it in a copy of the model's folder: --model path/to/copy") from None
        self._variables: dict[str, Any] = {
            "tools": None, "documents": None, "add_generation_prompt": False,
            **tokenizer.special_tokens_map, **variables,
            # A template that asks for the time gets this day: its conversations must not change overnight.
            "strftime_now": lambda form: today.strftime(form),
        }
        self._policy = policy
        words = {token.content: number for number, token in tokenizer.added_tokens_decoder.items()
                 if token.content.replace("\u2581", " ").strip()}  # runs of spaces and newlines, as Gemma's, are text
        self._control = re.compile("|".join(map(re.escape, sorted(words, key=len, reverse=True))) or "(?!)")
        self._is_control = np.zeros(max(words.values(), default=0) + 2, bool)  # the last one stands for all larger ids
        self._is_control[list(words.values())] = True
        self._trims = {role: self._probe_trim(role) for role in ("user", "assistant", "system")}
        default_system = self._probe_default_system()
        self._spans = SpanFinder(self._control, tokenizer.bos_token, default_system)
        self._drops_default = drop_default_system and bool(default_system)
        if self._drops_default and isinstance(self._render(Conversation((Message("user", "a"),), "")), Skipped):
            raise RecipeError("drop_default_system = true, but the default system prompt of the model's template is no "
                              f"turn of its own: {default_system[:80]!r}. Expected a system turn that opens and ends "
                              "with control tokens. Leave it in: --set harvest.drop_default_system=false")

    def __reduce__(self) -> tuple[Any, ...]:
        """Made anew in another process: a compiled template does not pickle."""
        return ChatTemplate, self._made_of

    def encode(self, conversations: Sequence[Conversation]) -> list[Encoded | Skipped]:
        """Encode conversations, in order; one that the template refuses or rewrites is `Skipped`."""
        backend = self._backend  # transformers leaves on it what its last call was asked for
        backend.no_truncation()
        backend.no_padding()
        backend.encode_special_tokens = False
        rendered = [self._render(conversation) for conversation in conversations]
        plain = [item for item in rendered if isinstance(item, _Rendered) and not item.escapes]
        encodings = iter(self._backend.encode_batch([item.text for item in plain], add_special_tokens=False))
        results: list[Encoded | Skipped] = []
        for conversation, item in zip(conversations, rendered, strict=True):
            if isinstance(item, Skipped):
                results.append(item)
            elif not item.text:
                next(encodings)
                results.append(Skipped(conversation.place, "no_tokens", "the conversation renders to no text"))
            elif item.escapes:
                results.append(self._classify(conversation, item, *self._encode_escaped(item)))
            else:
                encoding = next(encodings)
                results.append(self._classify(conversation, item, encoding.ids, encoding.offsets))
        return results

    def _classify(
        self, conversation: Conversation, item: "_Rendered", ids: Sequence[int], offsets: Offsets
    ) -> Encoded | Skipped:
        """The encoded conversation, once no control token is in it that the template did not write.

        Contents were escaped before; this finds what only the tokenizer sees: a control token that a content makes
        together with the text beside it, that a normalizer makes of other characters, or that plain text cannot avoid.
        """
        token_id = np.array(ids, np.int32)
        is_control = self._is_control[np.minimum(token_id, len(self._is_control) - 1)]
        encoded = _classify(item, token_id, offsets, is_control)
        forged = is_control & ((encoded.token_type & TokenType.SPECIAL) == 0)
        if self._policy != "keep" and forged.any():
            return Skipped(conversation.place, "control_token", "a message would become a control token")
        return encoded

    def _apply(self, messages: Sequence[Message]) -> str:
        """A conversation rendered as apply_chat_template does it.

        Not through it: of what it is given it makes plain data first, and so takes strftime_now away from templates.
        """
        dicts = [{"role": message.role, "content": message.content} for message in messages]
        return cast(str, self._template.render(messages=dicts, **self._variables))

    def _render(self, conversation: Conversation) -> "_Rendered | Skipped":
        messages = conversation.messages
        escaped = any(self._control.search(message.content) for message in messages)
        if escaped and self._policy == "reject":
            return Skipped(conversation.place, "control_token", "a message is spelled like a control token")
        if conversation.is_text:
            text = messages[0].content
            spans = self._spans.find(text, [Content(0, len(text), messages[0].role)])
            return _Rendered(text, spans, self._escapes(spans))
        together = "".join([message.content for message in messages])
        marks = [mark for mark in _PRIVATE_USE if mark not in together][:2]
        if len(marks) < 2:
            return Skipped(conversation.place, "private_use", "too many private-use characters to mark contents")
        try:
            text = self._apply(messages)
            marked = self._apply([Message(m.role, _mark(m.content, *marks)) for m in messages])
        except TEMPLATE_ERRORS as error:
            return Skipped(conversation.place, "template_error", str(error))
        contents = self._locate(messages, text, marked, marks)
        if contents is None:
            return Skipped(conversation.place, "template_rewrites", "the template changes or drops a message")
        spans = self._spans.find(text, contents)
        if self._drops_default:
            dropped = without_default_turn(text, spans)
            if dropped is None:
                return Skipped(conversation.place, "template_rewrites", "its default system prompt is no turn")
            text, spans = dropped
        return _Rendered(text, spans, self._escapes(spans))

    def _escapes(self, spans: Spans) -> list[tuple[int, int]]:
        """Start and stop of control strings in contents that must not become control tokens."""
        return spans.of_class(TokenClass.ESCAPED) if self._policy == "escape" else []

    def _locate(
        self, messages: Sequence[Message], text: str, marked: str, marks: Sequence[str]
    ) -> list[Content] | None:
        """Where each content stands in ``text``; None if the template did more than place (and trim) it."""
        pieces = re.split(f"[{marks[0]}{marks[1]}]", marked)
        if "".join(pieces) != text or len(pieces) != 2 * len(messages) + 1:
            return None
        ends = list(itertools.accumulate(map(len, pieces)))
        contents = []
        for number, message in enumerate(messages):
            start, stop = ends[2 * number], ends[2 * number + 1]
            core = message.content.strip()
            if text[start:stop] != core:
                return None
            lead = message.content[: message.content.find(core)] if core else message.content
            trail = message.content[len(lead) + len(core) :]
            trims_lead, trims_trail = self._trims.get(message.role, self._trims["user"])
            if not trims_lead and text.startswith(lead, max(start - len(lead), 0), start):
                start -= len(lead)
            if not trims_trail and text.startswith(trail, stop):
                stop += len(trail)
            contents.append(Content(start, stop, message.role))
        return contents

    def _probe_trim(self, role: str) -> tuple[bool, bool]:
        """Whether the template strips white space before and after a content of this role."""
        before = [Message("user", "a")] if role == "assistant" else []
        after = [Message("user", "a")] if role == "system" else []
        try:
            text = self._apply([*before, Message(role, " \t probe \t "), *after])
        except TEMPLATE_ERRORS:
            return False, False  # the template refuses this role, and so every conversation that has it
        return " \t probe" not in text, "probe \t " not in text

    def _probe_default_system(self) -> str:
        """The system prompt that the template puts where a conversation has none, "" if it has none.

        It is the text before the first turn that goes away when the conversation brings a system prompt of
        its own. A line that stays (Llama-3's date) is other template text.
        """
        user = Message("user", _PRIVATE_USE[0])
        try:
            alone = self._apply([user])
            prompted = self._apply([Message("system", _PRIVATE_USE[1]), user])
        except TEMPLATE_ERRORS:
            return ""
        for piece in self._control.split(alone.partition(_PRIVATE_USE[0])[0]):
            text = re.sub(r"^\s*\w+\n", "", piece).strip() if piece.strip() else ""
            if text and " " in text and text not in prompted:
                return text
        return ""

    def _encode_escaped(self, item: "_Rendered") -> tuple[list[int], list[tuple[int, int]]]:
        """Encode with the control strings of contents as plain text, as transformers' sanitizer does.

        Pieces after the first are encoded behind a newline that is removed again, so that SentencePiece
        adds no space at their start.
        """
        ids: list[int] = []
        offsets: list[tuple[int, int]] = []
        position = 0
        for start, stop in item.escapes:
            self._encode_piece(item.text, position, start, ids, offsets)
            word = self._encode_as_text(item.text[start:stop])
            ids += word
            offsets += [(start, stop)] * len(word)
            position = stop
        self._encode_piece(item.text, position, len(item.text), ids, offsets)
        return ids, offsets

    def _encode_piece(
        self, text: str, start: int, stop: int, ids: list[int], offsets: list[tuple[int, int]]
    ) -> None:
        if start == stop:
            return
        lead = "\n" if start else ""
        newline = len(self._backend.encode("\n", add_special_tokens=False).ids) if lead else 0
        encoding = self._backend.encode(lead + text[start:stop], add_special_tokens=False)
        if lead and encoding.offsets[newline - 1][1] != 1:  # the newline merged with what follows
            lead, newline = "", 0
            encoding = self._backend.encode(text[start:stop], add_special_tokens=False)
        ids += encoding.ids[newline:]
        shift = start - len(lead)
        offsets += [(a + shift, b + shift) for a, b in encoding.offsets[newline:]]

    def _encode_as_text(self, text: str) -> list[int]:
        """Ids of a control string as plain text: the tokenizer's pipeline without any of its added tokens.

        ``encode_special_tokens`` would not do: it spares special tokens only, not "<think>" and its like.
        """
        ids = self._without_added_tokens("\n" + text)
        newline: list[int] = self._backend.encode("\n", add_special_tokens=False).ids
        if ids[: len(newline)] == newline:
            return ids[len(newline) :]
        return self._without_added_tokens(text)

    def _without_added_tokens(self, text: str) -> list[int]:
        backend = self._backend
        if backend.normalizer is not None:
            text = backend.normalizer.normalize_str(text)
        words = [text]
        if backend.pre_tokenizer is not None:
            words = [word for word, _ in backend.pre_tokenizer.pre_tokenize_str(text)]
        return [token.id for word in words for token in backend.model.tokenize(word)]


@dataclass(frozen=True)
class _Rendered:
    text: str
    spans: Spans
    escapes: list[tuple[int, int]]
    """Start and stop of control strings in contents that must not become control tokens."""


def _mark(content: str, open_mark: str, close_mark: str) -> str:
    """Put the marks around a content, inside its own white space."""
    core = content.strip()
    if not core:
        return content + open_mark + close_mark
    return content.replace(core, open_mark + core + close_mark, 1)


_BITS = np.full(len(TokenClass), TokenType.TEMPLATE, np.uint16)
"""The `TokenType` bits of a span by its class, without SPECIAL."""
_BITS[TokenClass.BOS] |= TokenType.BOS
_BITS[TokenClass.ROLE_NAME] |= TokenType.ROLE_NAME
_BITS[TokenClass.DEFAULT_SYSTEM] |= TokenType.DEFAULT_SYSTEM
_BITS[list(CONTENT_CLASSES)] = TokenType.CONTENT
_BITS[TokenClass.ESCAPED] |= TokenType.ESCAPED


def _classify(
    item: _Rendered, token_id: npt.NDArray[np.int32], offsets: Offsets, is_control_id: npt.NDArray[np.bool_]
) -> Encoded:
    """Give each token the class, bits, role and turn of the spans it overlaps."""
    spans = item.spans
    span_of_char = spans.of_chars()
    edges = np.fromiter(itertools.chain.from_iterable(offsets), np.int64, 2 * len(token_id)).reshape(-1, 2)
    last_char = len(item.text) - 1
    left = np.minimum(edges[:, 0], last_char)
    first = span_of_char[left]
    last = span_of_char[np.maximum(np.minimum(edges[:, 1] - 1, last_char), left)]
    bits = _BITS[spans.token_class] | np.uint16(TokenType.SPECIAL) * spans.is_control
    chosen = first.copy()
    token_type = bits[first]
    for token in np.flatnonzero(first != last):
        overlapped: Sequence[int] = range(first[token], last[token] + 1)
        if is_control_id[token]:  # one that takes the white space beside it along (rstrip) is still what it is
            overlapped = [number for number in overlapped if spans.is_control[number]] or overlapped
        token_type[token] = np.bitwise_or.reduce(bits[list(overlapped)])
        chosen[token] = min(overlapped, key=lambda number: _rank(int(spans.token_class[number])))
    token_class = spans.token_class[chosen].astype(np.uint8)
    return Encoded(
        token_id=token_id,
        token_class=token_class,
        token_type=token_type,
        role=spans.role[chosen].astype(np.uint8),
        turn=np.minimum(spans.turn, 0xFFFF)[chosen].astype(np.uint16),
    )


def _rank(token_class: int) -> int:
    """A token across a seam counts with its content, else with what is not white space."""
    if token_class in CONTENT_CLASSES:
        return 0
    return 2 if token_class == TokenClass.TEMPLATE_SPACE else 1
