"""The errors a user can cause, each with the exit code that a command ends with.

A message says what is wrong with the value quoted, what was expected, and what to type. It is printed
without a traceback (``shared.terminal.run_command``); every other exception is a bug and keeps its own.
docs/errors.md has a section for each exit code.
"""

import re

from shared.redaction import without_secrets

_TELLS_WHAT_TO_TYPE = re.compile(r"python -m |(?<!\S)--[a-z]|\b[A-Z]+=|\bmake [a-z]")


class UserError(Exception):
    """Something the user can mend. Its message is printed as it is; the command ends with ``exit_code``."""

    exit_code = 2

    advice = ""
    """What to do about errors of this class. A message that does not say so itself gets it as a note."""

    def __init__(self, message: str) -> None:
        super().__init__(without_secrets(message))
        if self.advice and not _TELLS_WHAT_TO_TYPE.search(message):
            self.add_note(self.advice)

    def told(self) -> str:
        """The message with what to do about it, as it is printed."""
        return "\n".join([str(self), *getattr(self, "__notes__", [])])


class RecipeError(UserError):
    """A recipe, an option or a name that cannot be used."""

    exit_code = 2


class DataError(UserError):
    """Conversations that cannot be harvested: none, or too many malformed ones."""

    exit_code = 65


class StorageError(UserError):
    """A file that could not be read or written."""

    exit_code = 74
    advice = "Check the disk and your permissions, then give the same command again: what is committed is safe."


class TryAgainError(UserError):
    """Nothing is lost, and the same command goes on later: a full disk, a missing network."""

    exit_code = 75


class IdentityError(UserError):
    """A folder that belongs to another configuration."""

    exit_code = 76


class CorruptError(UserError):
    """Bytes on disk that are not the bytes that were written."""

    exit_code = 77
    advice = "See all damage, and what mends it: python -m harvest verify CACHE"
