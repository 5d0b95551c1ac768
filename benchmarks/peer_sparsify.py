"""eai-sparsify's own trainer as a contender (`benchmarks.peer_process`).

Its loop runs a language model at every step and hooks a module; the model here gives rows instead. The
loop has no step to call, so it runs in a thread that waits at the model for each step to be asked for.
"""

import os
import threading
import traceback
from types import SimpleNamespace
from typing import Any

import torch
from peer_process import Peer, serve
from sparsify import SparseCoderConfig, TrainConfig, Trainer
from torch import nn


class _Rows(nn.Module):
    """In the place of a language model: the hookpoint gives one batch of rows after another."""

    def __init__(self, peer: Peer) -> None:
        super().__init__()
        self.peer = peer
        self.hookpoint = nn.Identity()
        self.device = peer.batches[0].device
        self.dummy_inputs = {"input_ids": torch.zeros(1, 1, dtype=torch.int64)}
        self.config = SimpleNamespace()
        self.asked, self.reached = threading.Semaphore(0), threading.Semaphore(0)

    @property
    def base_model(self) -> nn.Module:
        return self

    def forward(self, input_ids: torch.Tensor) -> None:
        rows = self.peer.batches[0][:1]
        if torch.is_grad_enabled():  # the trainer's loop, not its look at the widths
            self.reached.release()
            self.asked.acquire()
            rows = self.peer.next_batch()
        self.hookpoint(rows[:, None])


class Sparsify(Peer):
    """With Adam, unit decoder norms and AuxK; its trainer does not clip gradients."""

    package = "eai-sparsify"

    def __init__(self, config: dict[str, Any], train: torch.Tensor) -> None:
        super().__init__(config, train)
        steps, batch = config["num_steps"], config["batch_size"]
        self.model = _Rows(self)
        dataset = [{"input_ids": torch.zeros(1, dtype=torch.int64)}] * (steps * batch)
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
        try:
            self.trainer.fit()
        except BaseException:
            traceback.print_exc()
            os._exit(1)  # the main thread waits for a step that will not come
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
