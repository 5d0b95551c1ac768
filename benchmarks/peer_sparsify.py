"""eai-sparsify's own trainer as a contender (`benchmarks.peer_process`).

Its loop runs a language model at every step and hooks a module; the model here looks rows up instead. The
loop has no step to call, so it runs in a thread that waits at the model for each step to be asked for.
"""

import threading
from types import SimpleNamespace
from typing import Any

import torch
from peer_process import Peer, serve
from sparsify import SparseCoderConfig, TrainConfig, Trainer
from torch import nn


class _Rows(nn.Module):
    """In the place of a language model: ``forward`` takes a batch of row numbers, its hookpoint gives the rows."""

    def __init__(self, rows: torch.Tensor) -> None:
        super().__init__()
        self.rows = rows
        self.hookpoint = nn.Identity()
        self.device = torch.device("cpu")
        self.dummy_inputs = {"input_ids": torch.zeros(1, 1, dtype=torch.int64)}
        self.config = SimpleNamespace()
        self.asked, self.reached = threading.Semaphore(0), threading.Semaphore(0)

    @property
    def base_model(self) -> nn.Module:
        return self

    def forward(self, input_ids: torch.Tensor) -> None:
        if torch.is_grad_enabled():  # the trainer's loop, not its look at the widths
            self.reached.release()
            self.asked.acquire()
        start = int(input_ids[0, 0])
        self.hookpoint(self.rows[start : start + len(input_ids)][:, None])


class Sparsify(Peer):
    """With Adam, unit decoder norms and AuxK; its trainer does not clip gradients."""

    package = "eai-sparsify"

    def __init__(self, config: dict[str, Any], train: torch.Tensor) -> None:
        super().__init__(config, train)
        steps, batch = config["num_steps"], config["batch_size"]
        self.model = _Rows(train)
        starts = torch.arange(steps) % len(self.batches) * batch
        ids = (starts[:, None] + torch.arange(batch)).flatten()
        dataset = [{"input_ids": row} for row in ids[:, None]]
        settings = TrainConfig(
            SparseCoderConfig(num_latents=config["d_sae"], k=config["k"]), batch_size=batch, optimizer="adam",
            lr=config["lr"], lr_warmup_steps=config["warmup_steps"], auxk_alpha=1 / 32, hookpoints=["hookpoint"],
            dead_feature_threshold=steps * batch // 10, save_every=10 * steps, log_to_wandb=False)
        self.trainer = Trainer(settings, dataset, self.model)  # type: ignore[arg-type]
        threading.Thread(target=self._fit, daemon=True).start()
        self.model.reached.acquire()

    def _fit(self) -> None:
        self.trainer.save = lambda: None
        torch.set_num_threads(self.config["threads"])
        self.trainer.fit()
        self.model.reached.release()

    def step(self) -> None:
        self.model.asked.release()
        self.model.reached.acquire()

    def reconstruct(self, x: torch.Tensor) -> tuple[torch.Tensor, float]:
        sae = self.trainer.saes["hookpoint"]
        top_acts, top_indices, _ = sae.encode(x)
        return sae.decode(top_acts, top_indices), float((top_acts > 0).sum() / len(x))


if __name__ == "__main__":
    serve(Sparsify)
