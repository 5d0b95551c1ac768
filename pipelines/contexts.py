"""Where latents are active: how often, on which classes of tokens, and their strongest held-out contexts."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from shared.format.tokens import TokenClass, enum_name
from shared.progress import Progress
from shared.reading.cache import Cache
from shared.reading.layer_rows import Rows
from shared.showing.token_text import pieces, visible
from train.export import ExportedSAE
from train.policy import TokenPolicy, keeps

MAX_ROWS = 100_000
"""Held-out rows that are looked at, the first ones: enough for a page, and bounded in time and memory."""
MIN_FIRINGS = 10
"""A latent that is active on fewer of them has too few contexts to be shown."""
MIN_FIRINGS_ON_TEXT = 20
"""On user and assistant text, of a latent that is compared between the two."""
NUM_CONTEXTS = 5
TOKENS_BEFORE, TOKENS_AFTER = 16, 7
_CHUNK_ROWS = 2048

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Firings:
    """On how many rows each latent is active."""

    rows: Rows
    """The held-out rows that the SAE's token policy keeps, ascending."""
    by_class: Ints
    """[token classes, d_sae]"""
    class_rows: Ints
    """[token classes]: rows of each class."""

    @property
    def total(self) -> Ints:
        """[d_sae]: rows on which each latent is active."""
        return np.asarray(self.by_class.sum(axis=0), np.int64)


@dataclass(frozen=True)
class ChosenLatent:
    """A latent that is shown, and why."""

    latent: int
    reason: str


@dataclass(frozen=True)
class ShownPiece:
    """A piece of a context; ``strength`` is its activation as a share of the latent's largest, 0 to 1."""

    text: str
    activation: float
    strength: float
    is_peak: bool
    is_control: bool


@dataclass(frozen=True)
class Context:
    """Tokens around one strong activation."""

    activation: float
    token_class: str
    conversation: int
    position: int
    pieces: list[ShownPiece]


@dataclass(frozen=True)
class ShownLatent:
    """A latent with what is known of it."""

    latent: int
    reason: str
    density: float
    """Share of ``Firings.rows`` on which it is active."""
    num_firings: int
    classes: list[tuple[str, float]]
    """The classes of the tokens it is active on, with their shares of its firings; the largest first."""
    num_conversations: int
    """In how many of the conversations it is active."""
    contexts: list[Context]


def held_out_rows(cache: Cache, layer: int, run: dict[str, Any]) -> Rows:
    """The first held-out rows of a layer that a run's token policy keeps, of at most `MAX_ROWS`."""
    rows = cache.rows(layer=layer, split="held_out")[:MAX_ROWS]
    policy = TokenPolicy.model_validate(run["policy"])
    return rows[keeps(cache, layer, policy, rows, run["resolved"]["median_norm"])]


def count_firings(cache: Cache, layer: int, sae: ExportedSAE, rows: Rows) -> Firings:
    """Count, by token class, the rows on which each latent is active."""
    classes = cache.token_class[rows].astype(np.int64)
    by_class = np.zeros((len(TokenClass), sae.d_sae), np.int64)
    for start, latents in _encode(cache, layer, sae, rows, "count firings"):
        active = (latents > 0).float()
        member = torch.nn.functional.one_hot(torch.from_numpy(classes[start:start + len(active)]), len(TokenClass))
        by_class += (member.float().t() @ active).round().long().numpy()
    return Firings(rows, by_class, np.bincount(classes, minlength=len(TokenClass)))


def choose_latents(firings: Firings, num_spread: int = 5, num_assistant: int = 3) -> list[ChosenLatent]:
    """Latents to show: some spread evenly over density, some that are the most specific to the assistant.

    Only latents with at least `MIN_FIRINGS` firings count. Specific to the assistant: the largest ratio of
    the share of assistant tokens to the share of user tokens that it fires on, each count plus one half,
    among those with `MIN_FIRINGS_ON_TEXT` firings on the text of either, and half of their firings there.
    """
    total = firings.total
    alive = np.flatnonzero(total >= MIN_FIRINGS)
    alive = alive[np.argsort(total[alive], kind="stable")]
    chosen: dict[int, str] = {}
    for number in range(min(num_spread, len(alive))):
        share = (number + 0.5) / num_spread
        latent = int(alive[int(share * len(alive))])
        chosen.setdefault(latent, f"denser than {share:.0%} of the latents alive")
    user, assistant = (firings.by_class[kind] for kind in (TokenClass.USER, TokenClass.ASSISTANT))
    user_rows, assistant_rows = (int(firings.class_rows[kind]) for kind in (TokenClass.USER, TokenClass.ASSISTANT))
    if user_rows and assistant_rows:
        ratio = (assistant + 0.5) / assistant_rows / ((user + 0.5) / user_rows)
        ratio[(user + assistant) < np.maximum(MIN_FIRINGS_ON_TEXT, total / 2)] = 0
        for latent in [int(number) for number in np.argsort(-ratio, kind="stable")[:num_assistant]]:
            if ratio[latent] > 1:
                chosen.setdefault(latent, f"{ratio[latent]:.1f} times as often on assistant text as on user text")
    return [ChosenLatent(latent, reason) for latent, reason in chosen.items()]


def show_latents(cache: Cache, layer: int, sae: ExportedSAE, firings: Firings,
                 chosen: Sequence[ChosenLatent]) -> list[ShownLatent]:
    """The chosen latents with their densities, classes and strongest contexts (`_contexts`)."""
    rows = firings.rows
    if not chosen:
        return []
    columns = torch.tensor([item.latent for item in chosen])
    activations = np.concatenate([latents[:, columns].numpy() for _, latents
                                  in _encode(cache, layer, sae, rows, "find contexts")])
    conversation = cache.conversation(rows)
    shown = []
    for number, item in enumerate(chosen):
        own: Floats = activations[:, number]
        counts = firings.by_class[:, item.latent]
        order = np.argsort(-counts, kind="stable")
        shown.append(ShownLatent(
            latent=item.latent,
            reason=item.reason,
            density=float(counts.sum()) / len(rows),
            num_firings=int(counts.sum()),
            classes=[(enum_name(TokenClass(kind)), float(counts[kind] / counts.sum()))
                     for kind in order if counts[kind] > 0],
            num_conversations=len(np.unique(conversation[own > 0])),
            contexts=_contexts(cache, rows, own, conversation),
        ))
    return shown


def _encode(cache: Cache, layer: int, sae: ExportedSAE, rows: Rows, title: str) -> Iterator[tuple[int, Tensor]]:
    """Latents ``[chunk, d_sae]`` chunk by chunk, on the CPU, each with the index of its first row."""
    activations = cache.layer(layer)
    with torch.no_grad(), Progress(title, total=len(rows), unit="rows") as progress:
        for start in range(0, len(rows), _CHUNK_ROWS):
            raw = torch.from_numpy(activations[rows[start:start + _CHUNK_ROWS]].view(np.uint16))
            x = raw.view(torch.bfloat16).to(sae.W_enc.device)
            yield start, sae.encode(x).cpu()
            progress.advance(len(x))


def _contexts(cache: Cache, rows: Rows, activations: Floats, conversation: Rows) -> list[Context]:
    """The strongest activations in their contexts, one a conversation at most and no two of equal tokens.

    Without the second rule a latent of the template's own text would show the same line five times.
    """
    found: list[Context] = []
    conversations: set[int] = set()
    texts: set[bytes] = set()
    for index in np.argsort(-activations, kind="stable"):
        if activations[index] <= 0 or len(found) == NUM_CONTEXTS:
            break
        if int(conversation[index]) in conversations:
            continue
        window = _window(cache, rows[index])
        text = cache.token_id[window].tobytes()
        if text not in texts:
            texts.add(text)
            conversations.add(int(conversation[index]))
            found.append(_context(cache, rows, activations, int(index), window))
    return found


def _window(cache: Cache, row: int) -> Rows:
    """The rows around ``row`` in its sequence."""
    sequence = int(cache.sequence(np.array([row]))[0])
    first, end = (int(edge) for edge in cache.sequence_offset[sequence:sequence + 2])
    return np.arange(max(first, row - TOKENS_BEFORE), min(end, row + TOKENS_AFTER + 1), dtype=np.int64)


def _context(cache: Cache, rows: Rows, activations: Floats, peak: int, window: Rows) -> Context:
    """The tokens of a window around ``rows[peak]``, each with the latent's activation."""
    row = int(rows[peak])
    place = np.searchsorted(rows, window)
    known = (place < len(rows)) & (rows[np.minimum(place, len(rows) - 1)] == window)
    values = np.where(known, activations[np.minimum(place, len(rows) - 1)], 0.0)  # the policy drops some rows
    largest = float(activations.max())
    shown = []
    for piece in pieces(cache.token_id[window].tolist(), cache.vocabulary.decode):
        value = float(values[piece.start:piece.stop].max())
        kind = int(cache.token_class[window[piece.start]])
        shown.append(ShownPiece(
            text=visible(piece.text),
            activation=value,
            strength=value / largest,
            is_peak=piece.start <= row - int(window[0]) < piece.stop,
            is_control=kind <= TokenClass.TURN_END and kind != TokenClass.ROLE_NAME,
        ))
    return Context(
        activation=float(activations[peak]),
        token_class=enum_name(TokenClass(cache.token_class[row])),
        conversation=int(cache.conversation(rows[peak:peak + 1])[0]),
        position=int(cache.position(rows[peak:peak + 1])[0]),
        pieces=shown,
    )
