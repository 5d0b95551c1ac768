"""What is made of a valid conversation before it meets the template, where the recipe asks for it.

A conversation is known by its key after this: data sets that differ only in what is normalised hold out the same
conversations.
"""

from dataclasses import dataclass, replace
from itertools import groupby, takewhile

from harvest.conversation import Conversation, Message


@dataclass(frozen=True)
class Normalisation:
    """The switches of a recipe, all off by default."""

    merge_same_role: bool = False
    fold_system: bool = False


AS_IT_IS = Normalisation()


def normalise(conversation: Conversation, asked: Normalisation) -> Conversation:
    """A conversation as the recipe wants it; doing it again changes nothing more.

    First ``fold_system``: the system turns that it starts with go before the text of its first user turn, wherever
    that stands. Where there is no user turn they stay, and so does a system turn further on: to move it would put it
    before what it answers. Then ``merge_same_role``: neighbours of the same role become one turn. Texts are joined by
    a blank line, blank ones left out, and are not changed otherwise.
    """
    messages = conversation.messages
    if asked.fold_system:
        messages = _fold_system(messages)
    if asked.merge_same_role:
        groups = [list(group) for _, group in groupby(messages, key=lambda message: message.role)]
        messages = tuple(group[0] if len(group) == 1 else _join(group[0].role, group) for group in groups)
    return conversation if messages == conversation.messages else replace(conversation, messages=messages)


def _fold_system(messages: tuple[Message, ...]) -> tuple[Message, ...]:
    system = list(takewhile(lambda message: message.role == "system", messages))
    rest = list(messages[len(system) :])
    first = next((number for number, message in enumerate(rest) if message.role == "user"), None)
    if not system or first is None:
        return messages
    rest[first] = _join("user", [*system, rest[first]])
    return tuple(rest)


def _join(role: str, messages: list[Message]) -> Message:
    """One message of several, the blank ones left out; of blank ones alone, the last."""
    texts = [message.content for message in messages if message.content.strip()]
    return Message(role, "\n\n".join(texts) if texts else messages[-1].content)
