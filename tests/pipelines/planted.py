"""Evaluated SAEs as files, made of rows that a test knows: what brute force over the rows is compared with."""

import json
import math
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from pipelines.loss.files import FORMAT_VERSION
from shared.sealed_json import write_sealed

D_IN = 4
SUBSETS = ("content", "policy", "all_without_first", "class:user", "class:assistant", "position:1-15", "position:16-63")


@dataclass
class Rows:
    """Rows of some conversations with their activations, the same for every SAE."""

    conversation: np.ndarray
    """[rows]"""
    keys: np.ndarray
    """[conversations]"""
    x: np.ndarray
    """[rows, D_IN]"""
    member: np.ndarray
    """[rows, subsets]"""

    @property
    def num_conversations(self):
        return len(self.keys)

    def reordered(self, order):
        """The same conversations, standing in another order."""
        rows = np.concatenate([np.flatnonzero(self.conversation == number) for number in order])
        place = np.argsort(order)
        return Rows(place[self.conversation[rows]], self.keys[order], self.x[rows], self.member[rows]), rows


def make_rows(num_conversations=12, seed=0):
    rng = np.random.default_rng(seed)
    conversation = np.repeat(np.arange(num_conversations), rng.integers(8, 40, num_conversations))
    n = len(conversation)
    member = rng.random((n, len(SUBSETS))) < 0.6
    member[:, 1:3] = True
    keys = rng.integers(0, 2**64, num_conversations, dtype=np.uint64)
    return Rows(conversation, keys, rng.standard_normal((n, D_IN)) + 1, member)


@dataclass
class Planted:
    """An SAE on such rows: its reconstruction and how many latents are active."""

    rows: Rows
    x_hat: np.ndarray
    active: np.ndarray

    def figure(self, subset, metric, take=None):
        """A figure by brute force over the rows of a subset, or over the rows ``take`` of it, which may repeat."""
        inside = self.rows.member[:, SUBSETS.index(subset)]
        take = np.flatnonzero(inside) if take is None else take[inside[take]]
        x, x_hat = self.rows.x[take], self.x_hat[take]
        error = ((x - x_hat) ** 2).sum(1)
        if metric == "explained_variance":
            return 1 - error.sum() / ((x - self.rows.x[inside].mean(0)) ** 2).sum()
        if metric == "mse":
            return error.mean() / D_IN
        if metric == "log2_mse":
            return math.log2(error.mean() / D_IN)
        if metric == "normalised_error":
            return (error / (x**2).sum(1)).mean()
        if metric == "cosine":
            return ((x * x_hat).sum(1) / np.linalg.norm(x, axis=1) / np.linalg.norm(x_hat, axis=1)).mean()
        assert metric == "l0"
        return self.active[take].mean()


def plant(rows, noise=0.3, seed=0, l0=32.0):
    """An SAE whose reconstruction is x with noise, harder in some conversations than in others."""
    rng = np.random.default_rng(seed)
    hard = np.random.default_rng(99).gamma(2, 0.5, rows.num_conversations)[rows.conversation, None]
    return Planted(rows, rows.x + noise * hard * rng.standard_normal(rows.x.shape), rng.poisson(l0, len(rows.x)))


def write(folder: Path, sae: Planted, *, seed=0, k=32, layer=9, cache_id="c" * 32, cache="planted", loss=None,
          architecture="batchtopk", d_in=D_IN, **recipe):
    """The files that training and evaluation leave beside an SAE, without its weights."""
    folder.mkdir(parents=True)
    rows = sae.rows
    digest = folder.name.replace("-", "").rjust(6, "0")[-6:]
    name = f"{architecture}-16-k{k}-s{seed}-{digest}"
    error = ((rows.x - sae.x_hat) ** 2).sum(1)
    by_row = {"n": np.ones(len(error)), "squared_error": error, "normalised_error": error / (rows.x**2).sum(1),
              "cosine": (rows.x * sae.x_hat).sum(1) / np.sqrt((rows.x**2).sum(1) * (sae.x_hat**2).sum(1)),
              "active": sae.active.astype(float)}
    sums = {"key": rows.keys.view(np.int64), "conversation": np.arange(rows.num_conversations)}
    for label, values in by_row.items():
        sums[label] = by_conversation(rows, values[:, None] * rows.member)
    means = np.stack([rows.x[inside].mean(0) for inside in rows.member.T])
    sums["variance"] = by_conversation(rows, ((rows.x[:, None] - means) ** 2).sum(2) * rows.member)
    save_file(sums, folder / "eval_conversations.safetensors", {"subsets": json.dumps(SUBSETS)})
    metrics = ("explained_variance", "mse", "log2_mse", "normalised_error", "cosine", "l0")
    subsets = {subset: {"num_rows": int(rows.member[:, number].sum()), "num_conversations": rows.num_conversations,
                        **{metric: sae.figure(subset, metric) for metric in metrics}, "intervals": {}}
               for number, subset in enumerate(SUBSETS)}
    latents = {"dead_held_out": None, "dead_train": 1, "dead_train_window_tokens": 10,
               "density_log10_histogram": {"edges": [-2.0, -1.0, 0.0], "counts": [10, 5], "never_fired": 1}}
    (folder / "eval.json").write_text(json.dumps({
        "format_version": 2, "sae": name, "architecture": architecture, "cache": cache, "cache_id": cache_id,
        "layer": layer, "num_rows": len(error), "d_in": d_in, "d_sae": 16, "subsets": subsets, "latents": latents}))
    write_sealed(folder / "run.json", {
        "name": name, "architecture": architecture, "cache": cache, "cache_id": cache_id, "layer": layer,
        "recipe": {"layer": layer, "train": {"data_seed": 0, "batch_size": 8, **recipe},
                   "sae": {"architecture": architecture, "d_sae": 16, "k": k, "seed": seed, "lr": None}},
        "resolved": {"num_steps": 10, "num_tokens": 80}, "units": [0], "policy": {}, "dead_train": 1,
        "versions": {"torch": "2"}})
    (folder / "metrics.jsonl").write_text(json.dumps(
        {"step": 10, "tokens": 80, "loss": 2.0, "explained_variance": 0.5, "l0": 3.0, "dead_latents": 1}) + "\n")
    if loss is not None:
        loss.write(folder)
    return folder


def by_conversation(rows, values):
    """Sums over the rows of each conversation."""
    return np.stack([values[rows.conversation == number].sum(0) for number in range(rows.num_conversations)])


@dataclass
class Loss:
    """Losses of predicted tokens, as the language model's evaluation leaves them."""

    keys: np.ndarray
    conversation: np.ndarray
    ce: np.ndarray
    """[tokens]"""
    extra: np.ndarray
    """[tokens]: how much worse with the SAE"""
    kl: np.ndarray
    assistant: np.ndarray = field(init=False)

    def __post_init__(self):
        self.assistant = np.arange(len(self.ce)) % 2 == 0

    def scopes(self):
        return {"all_without_first": np.ones(len(self.ce), bool), "assistant_without_first": self.assistant}

    def figure(self, scope, metric, take=None):
        """By brute force over tokens; ablation adds 4 nats (mean) or 9 (zero) to each."""
        inside = self.scopes()[scope]
        take = np.flatnonzero(inside) if take is None else take[inside[take]]
        extra = self.extra[take].mean()
        return {"kl": self.kl[take].mean(), "delta_ce": extra, "ce_recovered_mean": (4 - extra) / 4,
                "ce_recovered_zero": (9 - extra) / 9}[metric]

    def write(self, folder):
        arrays, scopes = {"key": self.keys}, {}
        for scope, inside in self.scopes().items():
            values = {"n": inside * 1.0, "ce": self.ce * inside, "ce_spliced": (self.ce + self.extra) * inside,
                      "kl": self.kl * inside, "ce_zero": (self.ce + 9) * inside, "ce_mean": (self.ce + 4) * inside,
                      "kl_zero": inside * 8.0, "kl_mean": inside * 3.0}
            for name, each in values.items():
                arrays[f"conversations.{scope}.{name}"] = np.array(
                    [each[self.conversation == number].sum() for number in range(len(self.keys))])
            figures = {metric: self.figure(scope, metric)
                       for metric in ("kl", "delta_ce", "ce_recovered_mean", "ce_recovered_zero")}
            scopes[scope] = {"num_tokens": int(inside.sum()), **figures, "intervals": {}}
        save_file(arrays, folder / "eval_loss_conversations.safetensors")
        cache_id = json.loads((folder / "eval.json").read_text())["cache_id"]
        (folder / "eval_loss.json").write_text(json.dumps(
            {"format_version": FORMAT_VERSION, "cache_id": cache_id, "streams": {"conversations": scopes}}))


def plant_loss(rows, worse=0.1, seed=0):
    """Losses on the tokens of the conversations of some rows."""
    rng = np.random.default_rng(seed)
    ce, extra, kl = (rng.gamma(2, scale, len(rows.conversation)) for scale in (1, worse, worse))
    return Loss(rows.keys, rows.conversation, ce, extra, kl)
