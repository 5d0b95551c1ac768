"""A language model in three parts that run on their own: up to a layer, from its output on, and the head.

    ids --first(ids)--> rows of the layer --rest(rows)--> after the final norm --logits(hidden)--> logits

Each part is the model's own `forward` with something else in the place of what is not to run, so that masks, positions,
rotary embeddings, attention, soft caps and scales are as transformers has them, whatever the architecture. As in
`harvest.forward`, batches are right-padded and run without attention mask and cache: a causal model never looks right.
"""

from typing import Any, cast

import torch
from torch import Tensor

from harvest.model import find_layers
from shared.errors import RecipeError

_TOLERANCE = 1e-3
"""Of the norm of what the whole model computes, by how much starting at the layer may differ. It is the same
arithmetic: a model that it does not hold for hands something else from layer to layer."""


class SplitModel:
    """A causal language model, split behind decoder layer ``layer``."""

    def __init__(self, model: torch.nn.Module, layer: int) -> None:
        """Split a model as `harvest.model.load_language_model` gives it.

        Raises:
            RecipeError: the decoder layers are not found.
        """
        self.model = model
        self.layer = layer
        self._parent, self._name = find_layers(model)
        self._base_name: str = cast(Any, model).base_model_prefix
        self._base: Any = getattr(model, self._base_name)
        self._layers: torch.nn.ModuleList = getattr(self._parent, self._name)
        self._first = self._layers[: layer + 1]
        self._state = _State()
        given = [_Given(self._state, decoder_layer) for decoder_layer in self._first]
        self._rest = torch.nn.ModuleList([*given, *self._layers[layer + 1 :]])
        self._head = _Head(self._base)
        self._first[layer].register_forward_hook(self._keep)

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return next(self.model.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """What it computes in."""
        return next(self.model.parameters()).dtype

    @property
    def vocabulary(self) -> int:
        """Number of logits."""
        return int(cast(Any, self.model).config.get_text_config().vocab_size)

    @torch.inference_mode()
    def first(self, ids: Tensor) -> Tensor:
        """The layer's output ``[sequences, longest, d_model]`` for right-padded ids ``[sequences, longest]``."""
        self._with(self._first, input_ids=ids)
        return self._state.take()

    @torch.inference_mode()
    def rest(self, rows: Tensor) -> Tensor:
        """What the head is given ``[sequences, longest, d_model]``, from the layer's output, of the same shape."""
        self._state.rows = rows
        # Embeddings that nothing reads: every layer up to this one hands on the rows in their place.
        return cast(Tensor, self._with(self._rest, inputs_embeds=rows).last_hidden_state)

    @torch.inference_mode()
    def whole(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """The layer's output, and what the head is given, from one pass of the whole model."""
        hidden = self._with(self._layers, input_ids=ids).last_hidden_state
        return self._state.take(), hidden

    @torch.inference_mode()
    def logits(self, hidden: Tensor) -> Tensor:
        """Logits ``[n, vocabulary]``, float32, of what `rest` gave ``[n, d_model]``."""
        self._head.hidden = hidden[None]
        setattr(self.model, self._base_name, self._head)
        try:
            logits: Tensor = self.model(inputs_embeds=hidden[None], use_cache=False).logits[0]
        finally:
            setattr(self.model, self._base_name, self._base)
        return logits.float()

    def checked(self, ids: Tensor) -> Tensor:
        """What the head is given by the whole model, made sure that starting at the layer's output gives the same.

        Raises:
            RecipeError: it does not.
        """
        rows, hidden = self.whole(ids)
        error = (self.rest(rows) - hidden).float().norm() / hidden.float().norm()
        if not error <= _TOLERANCE:
            raise RecipeError(f"{type(self.model).__name__} cannot be started from the output of layer {self.layer}: "
                              f"what comes out differs by {error:.1e} of its norm. Evaluate without the language "
                              "model: --loss-tokens 0")
        return hidden

    def _with(self, layers: torch.nn.ModuleList, **inputs: Tensor) -> Any:
        setattr(self._parent, self._name, layers)
        try:
            return self._base(**inputs, use_cache=False)
        finally:
            setattr(self._parent, self._name, self._layers)

    def _keep(self, _: torch.nn.Module, __: Any, output: Any) -> None:
        self._state.as_tuple = isinstance(output, tuple)
        self._state.rows = output[0] if isinstance(output, tuple) else output


class _State:
    """What stands in for the layers that do not run."""

    rows: Tensor | None = None
    as_tuple = False
    """Whether decoder layers return tuples: those of models with code of their own may."""

    def take(self) -> Tensor:
        rows, self.rows = self.rows, None
        assert rows is not None
        return rows


class _Given(torch.nn.Module):
    """In the place of a decoder layer that does not run: hands on the given rows."""

    def __init__(self, state: _State, replaced: torch.nn.Module) -> None:
        super().__init__()
        self._state = state
        self.attention_type = getattr(replaced, "attention_type", None)  # by which some models choose a mask

    def forward(self, *_: Any, **__: Any) -> Any:
        return (self._state.rows,) if self._state.as_tuple else self._state.rows


class _Head(torch.nn.Module):
    """In the place of the base model: hands what is given to the head."""

    hidden: Tensor | None = None

    def __init__(self, base: Any) -> None:
        super().__init__()
        self.config = base.config

    def forward(self, *_: Any, **__: Any) -> Any:
        return _Output(self.hidden)


class _Output(tuple[Tensor]):
    """A base model's output as far as a head looks at it."""

    past_key_values = hidden_states = attentions = None

    def __new__(cls, hidden: Any) -> "_Output":
        return super().__new__(cls, (hidden,))

    @property
    def last_hidden_state(self) -> Tensor:
        return self[0]
