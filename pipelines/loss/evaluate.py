"""The spliced loss of SAEs and baselines: what the model predicts when x_hat stands in for a layer's output.

The model starts from the layer's rows, which the cache has: clean, with each ablation, and with each SAE. What does not
depend on an SAE (the clean pass with its logits, and both ablations) is computed once for all of them. Two splices are
needed: with every position replaced, and with position 0 as it is (`figures.SCOPES`).
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from harvest.device import Device
from harvest.units import Piece, make_batches, unit_pieces
from pipelines.loss.figures import SCOPES, SUMS, LossSums, Table, scope_figures
from pipelines.loss.files import FORMAT_VERSION, write_loss
from pipelines.loss.scores import Scores, score
from pipelines.loss.split_model import SplitModel
from pipelines.loss.streams import Stream
from shared.progress import Progress
from shared.reading.cache import Cache
from train.evaluation.bootstrap import LEVEL, RESAMPLES, SEED
from train.evaluation.evaluate import Reconstruct, Subject, check_unseen
from train.evaluation.metrics import Bools, Floats, Ints

_CUDA_BATCH_TOKENS = 8_192
"""Padded tokens of a batch on a GPU; on a CPU as in a harvest."""

_PLAIN_TOKENS = 256
"""Tokens, at least, on which predictions from rows of the cache are compared with those of the whole model."""

_OF_SAE = ("ce_spliced", "kl")
_SHARED = tuple(name for name in SUMS if name not in _OF_SAE)


@dataclass(frozen=True)
class LossBatch:
    """Sequences of a stream side by side, right-padded."""

    ids: Tensor
    """[sequences, longest]"""
    x: Tensor
    """[sequences, longest, d_model]: the layer's output, 0 where there is no token."""
    slots: Tensor
    """[tokens]: where the tokens stand in the flattened batch"""
    tokens: Ints
    """[tokens]: their numbers in the stream"""


def evaluate_loss(cache: Cache, layer: int, subjects: Sequence[Subject], model: SplitModel, streams: Sequence[Stream],
                  device: Device, about_model: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Measure the spliced loss of SAEs and baselines of a layer, write their files, and return each eval_loss.json.

    Args:
        about_model: what eval_loss.json says of the model.

    Raises:
        DataError: what is held out was trained on. RecipeError: the model cannot be started at the layer.
    """
    conversations = np.unique(np.concatenate([stream.conversations for stream in streams]))
    check_unseen(cache, np.concatenate([stream.row[stream.row >= 0] for stream in streams]))
    tables: list[dict[str, Table]] = [{} for _ in subjects]
    plain: dict[str, Any] = {}
    for stream in streams:
        rows = LossRows(cache, layer, stream, model, device)
        plain[stream.name] = _plain(model, rows)
        shared, found = _measure(rows, subjects, model, conversations)
        for table, sums in zip(tables, found, strict=True):
            table[stream.name] = {name: (shared | sums)[name] for name in SUMS}
    contents = []
    for subject, table in zip(subjects, tables, strict=True):
        content = {
            "format_version": FORMAT_VERSION,
            "sae": subject.name,
            "cache": cache.name,
            "cache_id": cache.cache_id,
            "layer": layer,
            "model": dict(about_model),
            "split": "held_out",
            "num_conversations": len(conversations),
            "num_tokens": len(streams[0]),
            "compute": {
                "device": device.kind,
                "dtype": str(model.dtype).removeprefix("torch."),
                "rows": {stream.name: "cache" if stream.cached else "model" for stream in streams},
                "plain": plain,
            },
            "intervals": {"level": LEVEL, "resampled": "conversations", "resamples": RESAMPLES, "seed": SEED},
            "streams": {name: scope_figures(sums) for name, sums in table.items()},
        }
        write_loss(subject.folder, cache, content, conversations, table)
        contents.append(content)
    return contents


class LossRows:
    """The activations of a stream's tokens: the cache's, or computed by the model's first layers."""

    def __init__(self, cache: Cache, layer: int, stream: Stream, model: SplitModel, device: Device) -> None:
        self.stream = stream
        self._layer = cache.layer(layer)
        self._device = device.device
        self._dtype = model.dtype
        budget = _CUDA_BATCH_TOKENS if device.is_cuda else device.batch_tokens
        self._batches = make_batches(unit_pieces(stream.offset, range(len(stream))), budget)
        self._computed = None if stream.cached else self._compute(model, cache.d_model)

    def _compute(self, model: SplitModel, d_model: int) -> Tensor:
        """bf16 ``[N, d_model]``, as a cache would hold them."""
        rows = torch.empty(len(self.stream), d_model, dtype=torch.bfloat16)
        for batch in self._batches:
            ids, slots, tokens = self._place(batch)
            found = model.first(ids).reshape(-1, d_model)[slots]
            rows[torch.from_numpy(tokens)] = found.to("cpu", torch.bfloat16)
        return rows

    def of(self, tokens: Ints) -> Tensor:
        """bf16 ``[tokens, d_model]`` of some of the stream's tokens."""
        if self._computed is not None:
            return self._computed[torch.from_numpy(tokens)]
        return torch.from_numpy(self._layer[self.stream.row[tokens]].view(np.uint16)).view(torch.bfloat16)

    def mean(self) -> Tensor:
        """The mean row ``[d_model]``, float32, of all tokens but those at position 0."""
        tokens = np.flatnonzero(~self.stream.first)
        total = sum(self.of(part).double().sum(0) for part in np.array_split(tokens, max(1, len(tokens) // 4096)))
        assert isinstance(total, Tensor)
        return (total / max(1, len(tokens))).float()

    def __iter__(self) -> Iterator[LossBatch]:
        for pieces in self._batches:
            yield self.batch(pieces)

    def batch(self, pieces: Sequence[Piece]) -> LossBatch:
        """Some sequences of the stream, longest first."""
        ids, slots, tokens = self._place(pieces)
        rows = self.of(tokens).to(self._device, self._dtype)
        x = torch.zeros(*ids.shape, rows.shape[1], dtype=self._dtype, device=self._device)
        x.view(-1, rows.shape[1])[slots] = rows
        return LossBatch(ids, x, slots, tokens)

    def _place(self, pieces: Sequence[Piece]) -> tuple[Tensor, Tensor, Ints]:
        """Right-padded ids, where tokens stand in them, and which tokens of the stream they are."""
        ids = np.zeros((len(pieces), len(pieces[0])), np.int64)
        is_token = np.arange(ids.shape[1]) < np.array([[len(piece)] for piece in pieces])
        tokens = np.concatenate([np.arange(piece.start, piece.stop) for piece in pieces])
        ids[is_token] = self.stream.token_id[tokens]
        slots = torch.from_numpy(np.flatnonzero(is_token)).to(self._device)
        return torch.from_numpy(ids).to(self._device), slots, tokens


def _plain(model: SplitModel, rows: LossRows) -> dict[str, Any]:
    """CE of the shortest sequences by the whole model from their ids, and from the rows: they differ by the rows'
    rounding to bfloat16.

    Raises:
        RecipeError: the model cannot be started at the layer.
    """
    stream = rows.stream
    pieces = sorted(unit_pieces(stream.offset, range(len(stream))), key=len)
    enough = int(np.searchsorted(np.cumsum([len(piece) for piece in pieces]), _PLAIN_TOKENS)) + 1
    found: dict[str, float] = {"ce_plain": 0.0, "ce_from_rows": 0.0}
    num_tokens = 0
    for piece in pieces[:enough]:
        batch = rows.batch([piece])
        scored = np.flatnonzero(stream.predicts[batch.tokens])
        targets = torch.from_numpy(stream.token_id[batch.tokens[scored] + 1]).to(batch.ids.device)
        whole = model.checked(batch.ids)
        for name, hidden in (("ce_plain", whole), ("ce_from_rows", model.rest(batch.x))):
            ce, _ = score(model, hidden[0, torch.from_numpy(scored)], {}, targets)
            found[name] += float(ce.sum())
        num_tokens += len(scored)
    return {"num_tokens": num_tokens, **{name: total / max(1, num_tokens) for name, total in found.items()}}


@torch.no_grad()
def _measure(rows: LossRows, subjects: Sequence[Subject], model: SplitModel, conversations: Ints,
             ) -> tuple[Table, list[Table]]:
    """Sums ``[conversations, scopes]`` that all subjects share, and those of each."""
    stream, mean = rows.stream, rows.mean()
    ablations: dict[str, Reconstruct] = {
        "zero": lambda x, token_id: (torch.zeros_like(x), None),
        "mean": lambda x, token_id: (mean.to(x.device).expand_as(x), None),
    }
    shared = LossSums(len(conversations), _SHARED)
    found = [LossSums(len(conversations), _OF_SAE) for _ in subjects]
    with Progress(f"spliced loss on {stream.name}", total=len(stream), unit="tokens") as progress:
        for batch in rows:
            scored = np.flatnonzero(stream.predicts[batch.tokens])
            predicting = batch.tokens[scored]
            conversation = np.searchsorted(conversations, stream.conversation[predicting])
            member = _members(stream.assistant[predicting + 1], stream.first[predicting])
            clean, scores = _predict(model, stream, batch, scored, ablations, subjects)
            shared.add("n", np.ones(len(scored)), conversation, member)
            shared.add("ce", clean, conversation, member)
            for first in (True, False):
                here = member & np.array([scope.first == first for scope in SCOPES.values()])
                for name in ablations:
                    shared.add(f"ce_{name}", scores[name, first].ce, conversation, here)
                    shared.add(f"kl_{name}", scores[name, first].kl, conversation, here)
                for number, sums in enumerate(found):
                    sums.add("ce_spliced", scores[number, first].ce, conversation, here)
                    sums.add("kl", scores[number, first].kl, conversation, here)
            progress.advance(len(batch.tokens))
    return shared.table, [sums.table for sums in found]


def _predict(
    model: SplitModel, stream: Stream, batch: LossBatch, scored: Ints, ablations: Mapping[str, Reconstruct],
    subjects: Sequence[Subject],
) -> tuple[Floats, dict[tuple[str | int, bool], Scores]]:
    """CE of the predictions that a batch's tokens ``scored`` make, and what replacements make of them.

    The scores are by ablation or number of the subject, and by whether position 0 was replaced too.
    """
    at = batch.slots[torch.from_numpy(scored).to(batch.slots.device)]
    targets = torch.from_numpy(stream.token_id[batch.tokens[scored] + 1]).to(batch.ids.device)
    raw, token_id = batch.x.flatten(0, 1)[batch.slots], batch.ids.flatten()[batch.slots]
    at_first = torch.from_numpy(stream.first[batch.tokens]).to(raw.device)[:, None]

    def predicting(x: Tensor) -> Tensor:
        return model.rest(x).flatten(0, 1)[at]

    def spliced(reconstruct: Reconstruct, first: bool) -> Tensor:
        x_hat = reconstruct(raw.float(), token_id)[0].to(raw.dtype)
        x = torch.zeros_like(batch.x)
        x.view(-1, x.shape[-1])[batch.slots] = x_hat if first else torch.where(at_first, raw, x_hat)
        return predicting(x)

    replacements: list[tuple[str | int, Reconstruct]] = [
        *ablations.items(), *((number, subject.reconstruct) for number, subject in enumerate(subjects))]
    hidden = {(key, first): spliced(reconstruct, first)
              for key, reconstruct in replacements for first in (True, False)}
    return score(model, predicting(batch.x), hidden, targets)


def _members(assistant: Bools, first: Bools) -> Bools:
    """Which scopes predictions are in ``[predictions, scopes]``, by what is predicted and from where."""
    return np.stack([(assistant | (not scope.assistant)) & (scope.first | ~first) for scope in SCOPES.values()], axis=1)
