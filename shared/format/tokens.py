"""What kind of token a row is: its class, its type bits and its role.

Every token is in exactly one `TokenClass`, the first that fits in the order of declaration.
`TokenType` holds what overlaps, as bits. The numbers are part of the cache format and never change.
"""

from enum import IntEnum, IntFlag


class TokenClass(IntEnum):
    """The one class of a token (``tokens/token_class``, uint8)."""

    FIRST = 0
    """Position 0 of its sequence, where the attention sink sits."""
    BOS = 1
    """Beginning of sequence, or a separator put there by template or order; not a turn's start."""
    TURN_START = 2
    """Opens a turn: ``<|im_start|>``, ``<|start_header_id|>``."""
    ROLE_NAME = 3
    """The role's name in a turn's header."""
    HEADER_END = 4
    """Closes a turn's header: ``<|end_header_id|>``."""
    TURN_END = 5
    """Closes a turn: ``<|im_end|>``, ``<|eot_id|>``."""
    DEFAULT_SYSTEM = 6
    """The template's own system prompt, put there when the conversation has none."""
    TEMPLATE_SPACE = 7
    """White space of the template."""
    TEMPLATE_OTHER = 8
    """Other text of the template, a date line say."""
    ESCAPED = 9
    """Content that is spelled like a control token."""
    SYSTEM = 10
    USER = 11
    ASSISTANT = 12
    OTHER_ROLE = 13
    """Content of a turn by its role."""


class TokenType(IntFlag):
    """What a token is, as overlapping bits (``tokens/token_type``, uint16)."""

    FIRST = 1
    """Position 0 of its sequence."""
    BOS = 2
    """Beginning of sequence or separator, not a turn's start."""
    SPECIAL = 4
    """A control token that the template put there. Implies TEMPLATE."""
    TEMPLATE = 8
    """Anything that the template put there."""
    ROLE_NAME = 16
    """Part of a role's name in a header."""
    DEFAULT_SYSTEM = 32
    """Part of the template's own system prompt."""
    CONTENT = 64
    """Text of a message. A token across the seam has TEMPLATE and CONTENT both."""
    ESCAPED = 128
    """Content that is spelled like a control token."""


class Role(IntEnum):
    """Whose turn a token stands in (``tokens/role``, uint8)."""

    NONE = 0
    SYSTEM = 1
    USER = 2
    ASSISTANT = 3
    OTHER = 4


CONTENT_CLASSES = (
    TokenClass.ESCAPED,
    TokenClass.SYSTEM,
    TokenClass.USER,
    TokenClass.ASSISTANT,
    TokenClass.OTHER_ROLE,
)
"""Classes whose tokens are text of the conversation, not of the template."""


def enum_name(member: IntEnum | IntFlag) -> str:
    """The lower-case name a user types and a file stores: ``TokenClass.TURN_END`` is "turn_end"."""
    return str(member.name).lower()
