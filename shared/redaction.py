"""Text without the secrets that get into it: credentials in URLs, and tokens of the environment.

No option of ours takes a token and no file of ours records the environment. What is left are names that a user
types (``https://user:password@host/data?token=...``) and messages of other libraries, which quote URLs and
headers. Errors are cleaned as they are made, tracebacks as they are printed.
"""

import os
import re

_URL = re.compile(
    r"([A-Za-z][A-Za-z0-9+.\-]*://)"  # scheme
    r"(?:[^\s/'\"<>]*@)?"  # user:password@, up to the last @ before the path
    r"([^\s?#'\"<>]*)"  # host and path
    r"(?:[?#][^\s'\"<>)\]]*)?"  # query and fragment
)
_TOKENS = re.compile(r"hf_[A-Za-z0-9]{16,}|(?<=[Bb]earer )[^\s'\"]+|(?<=[Bb]asic )[A-Za-z0-9+/=]{8,}")
_SECRET_NAME = re.compile(
    r"(TOKEN|SECRET|PASSWORD|PASSWD|PASSPHRASE|CREDENTIALS|API_?KEY|ACCESS_KEY(_ID)?|SECRET_KEY|PRIVATE_KEY)$"
)
_SHORTEST = 8
"""Values of the environment shorter than this are no secrets, and words of ordinary messages."""


def without_secrets(text: str) -> str:
    """The text with user, password, query and fragment taken out of URLs, and tokens replaced by ``***``."""
    for value in _secrets_of_the_environment():
        text = text.replace(value, "***")
    return _TOKENS.sub("***", _URL.sub(r"\1\2", text))


def _secrets_of_the_environment() -> list[str]:
    """Values of variables that are named like secrets, longest first: one may begin with another."""
    found = {
        value for name, value in os.environ.items()
        if _SECRET_NAME.search(name.upper()) and len(value) >= _SHORTEST and not value.startswith("/")
    }
    return sorted(found, key=len, reverse=True)
