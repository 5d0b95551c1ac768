"""What an SAE has to be better than, fitted on the training rows that its token policy keeps (docs/metrics.md).

    identity       x_hat = x: what a perfect reconstruction scores
    token_mean     the mean activation of the row's token id; the mean of all rows for ids that were not met
    pca            the mean plus the k directions of most variance: the best k linear coordinates that all rows share
    random         k of d_sae random directions, those of the largest projections: what an SAE is before it is trained

``random`` has unit decoder rows W_dec drawn from the sphere, and m the mean of the training rows:

    x_hat = m + TopK(ReLU(g (x - m) W_dec^T), k) W_dec

with the one number g that reconstructs training rows best. It is the frozen random decoder of Korznikov et al. 2026
(arXiv 2602.14111) with nothing trained in the encoder either: a floor, weaker than theirs.

All are functions of the rows alone: fitted again, they are the same.
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from shared import storage
from shared.digests import canonical_json
from shared.format.layout import BLOCK_ROWS
from shared.progress import Progress
from shared.reading.cache import Cache
from shared.sealed_json import read_sealed
from train.evaluation.evaluate import Reconstruct, Subject, check_run, encode_and_decode
from train.evaluation.files import read_current
from train.evaluation.metrics import Ints
from train.export import ExportedSAE
from train.export.exported import RUN, MadeFor
from train.policy import TokenPolicy, training_mask

BASELINES = "baselines"
"""Their folder, in that of the layer's SAEs."""

FIT_ROWS = 1_000_000
"""Training rows that baselines are fitted on at most: a fixed sample of whole blocks."""

GAIN_ROWS = 16_384
"""Of these, how many the gain of ``random`` is measured on."""

SEED = 0
_CHUNK_ROWS = 2048


@dataclass(frozen=True)
class Sizes:
    """The numbers of active latents, and widths with them, of the SAEs that are compared with."""

    ks: tuple[int, ...]
    widths: tuple[tuple[int, int], ...]
    """Pairs of d_sae and k."""


@dataclass(frozen=True)
class Moments:
    """Sums of the rows that baselines are fitted on, float64."""

    num_rows: int
    mean: Tensor
    """[d_in]"""
    covariance: Tensor
    """[d_in, d_in], with 1 / n"""
    token_counts: Tensor
    """[ids]"""
    token_means: Tensor
    """[ids, d_in]: of ids that were not met, the mean"""


def fit_baselines(cache: Cache, layer: int, folders: Sequence[Path], layer_folder: Path,
                  device: str = "cpu") -> list[Subject]:
    """Fit the baselines of some SAEs of a layer, to be evaluated as they are; there must be held-out rows.

    Makes their folders, ``<layer_folder>/baselines/<name>/``.

    Raises:
        IdentityError: an SAE is of another layer or cache.
    """
    runs = [read_sealed(folder / RUN) for folder in folders]
    for folder, run in zip(folders, runs, strict=True):
        check_run(cache, layer, folder, run)
    rows_of: dict[bytes, list[dict[str, Any]]] = {}
    for run in runs:
        rows_of.setdefault(canonical_json(_training_rows(run)), []).append(run)
    subjects = []
    for alike in rows_of.values():
        pairs = sorted({(run["recipe"]["sae"]["d_sae"], max(1, round(run["l0_train"]))) for run in alike})
        sizes = Sizes(tuple(sorted({k for _, k in pairs})), tuple(pairs))
        subjects += _subjects(cache, layer, alike[0], sizes, layer_folder / BASELINES, device)
    for subject in subjects:
        storage.make_folder(subject.folder)
    return subjects


def read_baselines(cache: Cache, layer: int, layer_folder: Path) -> list[dict[str, Any]]:
    """The eval.json of the baselines that were evaluated on the held-out rows that are there now, by name."""
    num_rows = len(cache.rows(layer=layer, split="held_out"))
    found = [read_current(path, num_rows) for path in sorted((layer_folder / BASELINES).glob("*"))]
    return [content for content in found if content is not None and content["cache_id"] == cache.cache_id]


def _training_rows(run: dict[str, Any]) -> dict[str, Any]:
    """Which rows an SAE was trained on."""
    return {"cache_id": run["cache_id"], "layer": run["layer"], "policy": run["policy"],
            "median_norm": run["resolved"]["median_norm"], "units": run["units"]}


def _subjects(cache: Cache, layer: int, run: dict[str, Any], sizes: Sizes, parent: Path, device: str) -> list[Subject]:
    policy, median = TokenPolicy.model_validate(run["policy"]), run["resolved"]["median_norm"]
    mask = training_mask(cache, layer, policy, run["units"], median)
    rows = sample_rows(mask)
    ids = np.unique(cache.token_id[cache.rows(layer=layer, split="held_out")]).astype(np.int64)
    moments = measure_moments(cache, layer, rows, ids, device)
    digest = hashlib.sha256(canonical_json(_training_rows(run))).hexdigest()[:6]
    unmet = int((moments.token_counts == 0).sum())
    sample = rows[:: -(-len(rows) // GAIN_ROWS)]

    def subject(kind: str, variant: str, label: str, reconstruct: Reconstruct, d_sae: int = 0, **facts: Any) -> Subject:
        name = f"{kind}{variant}-{digest}"
        about = {"label": label, "fit_rows": len(rows), "training_rows": int(mask.sum()), **facts}
        return Subject(parent / name, name, kind, d_sae, reconstruct, policy, median, None, about)

    made = [subject("identity", "", "identity", lambda x, token_id: (x, None)),
            subject("token_mean", "", "mean of the token", token_mean(moments, ids),
                    held_out_ids=len(ids), held_out_ids_not_met=unmet)]
    for k in sorted({min(k, cache.d_model) for k in sizes.ks}):
        made.append(subject("pca", f"-k{k}", f"PCA, k {k}", pca(moments, k), k, k=k))
    for d_sae, k in sizes.widths:
        sae = random_directions(cache, layer, sample, moments.mean, d_sae, k, device)
        made.append(subject("random", f"-{d_sae}-k{k}-s{SEED}", f"random {d_sae / cache.d_model:.3g}x, k {k}",
                            encode_and_decode(sae), d_sae, k=k, seed=SEED))
    return made


def sample_rows(mask: np.ndarray[Any, np.dtype[np.bool_]], max_rows: int = FIT_ROWS) -> Ints:
    """Up to ``max_rows`` of the rows that a mask keeps, ascending: a fixed sample of whole blocks."""
    rows = np.flatnonzero(mask).astype(np.int64)
    if len(rows) <= max_rows:
        return rows
    block = rows // BLOCK_ROWS
    order = np.random.Generator(np.random.Philox(SEED)).permutation(int(block[-1]) + 1)
    counts = np.bincount(block, minlength=len(order))[order]
    chosen = order[: int(np.searchsorted(counts.cumsum(), max_rows, side="right"))]
    return rows[np.isin(block, chosen)]


@torch.no_grad()
def measure_moments(cache: Cache, layer: int, rows: Ints, ids: Ints, device: str = "cpu") -> Moments:
    """Mean, covariance, and mean of each of the token ``ids`` (ascending) over some rows: one pass, in float64."""
    sum_x = torch.zeros(cache.d_model, dtype=torch.float64, device=device)
    sum_xx = torch.zeros(cache.d_model, cache.d_model, dtype=torch.float64, device=device)
    counts = torch.zeros(len(ids) + 1, dtype=torch.float64, device=device)
    sums = torch.zeros(len(ids) + 1, cache.d_model, dtype=torch.float64, device=device)
    centre: Tensor | None = None  # near the mean: sums about it lose no digits to a large one
    known = torch.from_numpy(ids).to(device)
    with Progress(f"fit baselines of layer {layer}", total=len(rows), unit="rows") as progress:
        for here, raw in _chunks(cache, layer, rows):
            x = raw.to(device).double()
            centre = x.mean(0) if centre is None else centre
            x = x - centre
            sum_x += x.sum(0)
            sum_xx += x.t() @ x
            number = _places(known, torch.from_numpy(cache.token_id[here].astype(np.int64)).to(device))
            counts.index_add_(0, number, torch.ones(len(x), dtype=torch.float64, device=device))
            sums.index_add_(0, number, x)
            progress.advance(len(x))
    assert centre is not None
    mean = sum_x / len(rows)
    met = counts[:-1, None] > 0
    token_means = torch.where(met, sums[:-1] / counts[:-1, None].clamp_min(1), mean)
    return Moments(len(rows), centre + mean, sum_xx / len(rows) - torch.outer(mean, mean), counts[:-1],
                   centre + token_means)


def _places(ids: Tensor, token_id: Tensor) -> Tensor:
    """The place of each token id among ``ids`` (ascending), or their number where it is not among them."""
    place = torch.searchsorted(ids, token_id).clamp_max(len(ids) - 1)
    return torch.where(ids[place] == token_id, place, len(ids))


def token_mean(moments: Moments, ids: Ints) -> Reconstruct:
    """Each row's token's mean (`Moments.token_means`, of ``ids``)."""
    known = torch.from_numpy(ids).to(moments.mean.device)
    means = torch.cat([moments.token_means, moments.mean[None]])
    return lambda x, token_id: (means[_places(known, token_id)], None)


def pca(moments: Moments, k: int) -> Reconstruct:
    """Mean plus projection on the ``k`` leading eigenvectors of the covariance; latents ``[n, k]`` are coordinates."""
    _, vectors = torch.linalg.eigh(moments.covariance)
    components = vectors[:, -k:]

    def reconstruct(x: Tensor, token_id: Tensor) -> tuple[Tensor, Tensor]:
        latents = (x.double() - moments.mean) @ components
        return moments.mean + latents @ components.t(), latents

    return reconstruct


@torch.no_grad()
def random_directions(cache: Cache, layer: int, rows: Ints, mean: Tensor, d_sae: int, k: int,
                      device: str = "cpu") -> ExportedSAE:
    """The ``random`` baseline (see the module), its gain g by least squares on ``rows``."""
    generator = torch.Generator().manual_seed(SEED)
    W_dec = torch.nn.functional.normalize(torch.randn(d_sae, cache.d_model, generator=generator), dim=1).to(device)
    b_enc, b_dec = torch.zeros(d_sae, device=device), mean.float()

    def with_gain(gain: float) -> ExportedSAE:
        return ExportedSAE("topk", W_dec.t() * gain, b_enc, W_dec, b_dec, None, None, min(k, d_sae), {}, "saelens",
                           MadeFor(None, None, None))

    sae = with_gain(1.0)
    dot = squares = 0.0
    for _, raw in _chunks(cache, layer, rows):
        x = raw.to(device)
        shift = (sae(x) - b_dec).double()
        dot += float(((x - b_dec).double() * shift).sum())
        squares += float(shift.square().sum())
    return with_gain(dot / max(squares, 1e-30))


def _chunks(cache: Cache, layer: int, rows: Ints) -> Iterator[tuple[Ints, Tensor]]:
    """Pieces of ``rows`` with their activations, float32 ``[n, d_in]``."""
    activations = cache.layer(layer)
    for start in range(0, len(rows), _CHUNK_ROWS):
        here = rows[start : start + _CHUNK_ROWS]
        yield here, torch.from_numpy(activations[here].view(np.uint16)).view(torch.bfloat16).float()
