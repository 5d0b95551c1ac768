"""dictionary_learning's own trainers as contenders (`benchmarks.peer_process`)."""

from typing import Any

import torch
from dictionary_learning.trainers.batch_top_k import BatchTopKTrainer
from dictionary_learning.trainers.matryoshka_batch_top_k import MatryoshkaBatchTopKTrainer
from dictionary_learning.trainers.top_k import TopKTrainer
from peer_process import Peer, serve


class DictionaryLearning(Peer):
    """Unit decoder norms, gradient projection, clipping and AuxK are on by default."""

    package = "dictionary-learning"

    def __init__(self, config: dict[str, Any], train: torch.Tensor) -> None:
        super().__init__(config, train)
        steps = config["num_steps"]
        trainer = {"topk": TopKTrainer, "batchtopk": BatchTopKTrainer,
                   "matryoshka": MatryoshkaBatchTopKTrainer}[config["architecture"]]
        groups = {"group_fractions": config["groups"]} if config["architecture"] == "matryoshka" else {}
        self.trainer: Any = trainer(
            steps=steps, activation_dim=train.shape[1], dict_size=config["d_sae"], k=config["k"], layer=0, lm_name="",
            lr=config["lr"], warmup_steps=config["warmup_steps"], decay_start=steps - config["decay_steps"], seed=0,
            device=config["device"], **groups)
        # 10 M in the package, whatever the run's length; a tenth of the run for all contenders.
        self.trainer.dead_feature_threshold = steps * config["batch_size"] // 10

    def step(self) -> None:
        x = self.next_batch()
        with torch.autocast(x.device.type, torch.bfloat16, enabled=x.is_cuda):  # as its own loop does
            self.trainer.update(self.done - 1, x)

    def reconstruct(self, x: torch.Tensor) -> tuple[torch.Tensor, float]:
        latents = self.trainer.ae.encode(x, use_threshold=False)
        return self.trainer.ae.decode(latents), float((latents > 0).sum() / len(x))


if __name__ == "__main__":
    serve(DictionaryLearning)
