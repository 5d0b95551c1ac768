"""How each class of token looks, on pages and in a terminal, and what it is in a few plain words.

Classes differ in border and style besides colour, so that a grey print can be read.
"""

from dataclasses import dataclass

from shared.format.tokens import TokenClass

_INK = "#1c1c1c"


@dataclass(frozen=True)
class Look:
    """The look of one class."""

    meaning: str
    background: str
    """As #rrggbb, like ``ink``."""
    ink: str = _INK
    border: str = ""
    """A CSS declaration; a terminal has none."""
    bold: bool = False
    italic: bool = False
    framed: bool = False
    """A control token: shown in a frame and in letters of one width."""


LOOKS: dict[TokenClass, Look] = {
    TokenClass.FIRST: Look(
        "position 0 of the conversation, whatever stands there",
        "#2b2b2b", "#ffffff", "border: 1px solid #2b2b2b", framed=True),
    TokenClass.BOS: Look(
        "beginning-of-sequence token of the template",
        "#ffffff", border="border: 1px dashed #2b2b2b", framed=True),
    TokenClass.TURN_START: Look(
        "control token that opens a turn",
        "#ffffff", border="border: 1px solid #2b2b2b", framed=True),
    TokenClass.ROLE_NAME: Look(
        "the name of who speaks, in a turn's header",
        "#fbeecb", bold=True, italic=True),
    TokenClass.HEADER_END: Look(
        "control token that closes a turn's header",
        "#efefef", border="border: 1px solid #8a8a8a", framed=True),
    TokenClass.TURN_END: Look(
        "control token that closes a turn",
        "#c9c9c9", border="border: 1px solid #2b2b2b", framed=True),
    TokenClass.DEFAULT_SYSTEM: Look(
        "the template's own system prompt, there because the chat has none",
        "#efe8f4", border="border-bottom: 2px dashed #9a86ab", italic=True),
    TokenClass.TEMPLATE_SPACE: Look("white space of the template", "#efefef", "#565656"),
    TokenClass.TEMPLATE_OTHER: Look("other text of the template", "#efefef", italic=True),
    TokenClass.ESCAPED: Look(
        "text of a message that is spelled like a control token, and is none",
        "#fde3e0", border="border: 1px dashed #b3261e"),
    TokenClass.SYSTEM: Look(
        "text of a system message", "#efe8f4", border="border-bottom: 2px solid #9a86ab"),
    TokenClass.USER: Look(
        "text of a user's message", "#e3eef8", border="border-bottom: 2px solid #7ba3c7"),
    TokenClass.ASSISTANT: Look(
        "text of an assistant's message", "#e6f3df", border="border-bottom: 2px dotted #5f8f4a"),
    TokenClass.OTHER_ROLE: Look(
        "text of a message of another role", "#f3ece2", border="border-bottom: 2px double #a98c5f"),
}
"""The one table of colours: the pages' style and the terminal's are made from it."""
