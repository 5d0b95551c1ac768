"""One chat through the model, as the harvest does it: tokens with their classes, and a layer's activations.

For looking at an SAE by hand (the README's example). A harvest runs thousands of chats in batches instead.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from harvest.config import HarvestConfig
from harvest.conversation import Conversation, Skipped, parse_row
from harvest.device import find_device
from harvest.forward import Forward
from harvest.model import find_model, load_model
from harvest.template import ChatTemplate, Encoded
from harvest.units import Piece
from shared.errors import DataError, RecipeError
from shared.format.tokens import Role, TokenClass, enum_name


@dataclass(frozen=True)
class ChatTokens:
    """A chat's tokens; every field has one entry a token."""

    text: list[str]
    token_class: list[str]
    """Names of `TokenClass`: "turn_start", "user", ..."""
    role: list[str]
    x: Tensor
    """Activations ``[tokens, d_model]``, float32 of the bf16 values that a cache would hold."""


def run_chat(model: str, messages: Sequence[dict[str, str]], layer: int, device: str = "auto") -> ChatTokens:
    """Run one chat through a model up to a layer.

    Args:
        model: alias, hub id or local folder, as `harvest` takes it.
        messages: ``[{"role": "user", "content": "Hello!"}, ...]``
        layer: decoder layer, 0-based; x is its output.

    Raises:
        UserError: the model is not there, has no such layer, or its template refuses the chat.
    """
    config = HarvestConfig.model_validate({"model": model, "layers": [layer]})
    source = find_model(config.model)
    num_layers = int(source.config().num_hidden_layers)
    if not 0 <= layer < num_layers:
        raise RecipeError(f"Layer {layer} is out of range: {source.name} has layers 0 to {num_layers - 1}. Choose one "
                          "of those.")
    tokenizer = source.tokenizer()
    template = ChatTemplate(tokenizer, config.template_variables)
    encoded = _encode(template, parse_row({"messages": list(messages)}, "chat"))
    where = find_device(device)
    cut = load_model(source, layer, where.compute_dtype("auto"), config.attention, where.device)
    whole = Piece(start=0, keep=0, stop=len(encoded))
    captured, = Forward(cut, [layer], where.device).run([whole], encoded.token_id.astype(np.int64)[None])
    captured.wait()
    ids = [[int(number)] for number in encoded.token_id]
    return ChatTokens(
        text=tokenizer.backend_tokenizer.decode_batch(ids, skip_special_tokens=False),
        token_class=[enum_name(TokenClass(number)) for number in encoded.token_class],
        role=[enum_name(Role(number)) for number in encoded.role],
        x=captured.rows[layer].float().clone(),
    )


def _encode(template: ChatTemplate, chat: Conversation | Skipped) -> Encoded:
    encoded = template.encode([chat])[0] if isinstance(chat, Conversation) else chat
    if isinstance(encoded, Skipped):
        raise DataError(f"This chat cannot be run: {encoded.reason} ({encoded.detail}). Expected messages with a role "
                        "and a content that the model's template takes.")
    return encoded.as_sequence()
