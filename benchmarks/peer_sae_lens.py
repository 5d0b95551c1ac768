"""sae-lens's own trainer as a contender (`benchmarks.peer_process`)."""

from typing import Any

import torch
from peer_process import Peer, serve
from sae_lens.config import LoggingConfig, SAETrainerConfig
from sae_lens.saes.batchtopk_sae import BatchTopKTrainingSAE, BatchTopKTrainingSAEConfig
from sae_lens.saes.gated_sae import GatedTrainingSAE, GatedTrainingSAEConfig
from sae_lens.saes.jumprelu_sae import JumpReLUTrainingSAE, JumpReLUTrainingSAEConfig
from sae_lens.saes.matryoshka_batchtopk_sae import MatryoshkaBatchTopKTrainingSAE, MatryoshkaBatchTopKTrainingSAEConfig
from sae_lens.saes.standard_sae import StandardTrainingSAE, StandardTrainingSAEConfig
from sae_lens.saes.topk_sae import TopKTrainingSAE, TopKTrainingSAEConfig
from sae_lens.training.sae_trainer import SAETrainer


class SAELens(Peer):
    """Decoder norms are free in this package: selection and penalty take them into account."""

    package = "sae-lens"

    def __init__(self, config: dict[str, Any], train: torch.Tensor) -> None:
        super().__init__(config, train)
        steps, batch = config["num_steps"], config["batch_size"]
        device = config["device"]
        sizes = {"d_in": train.shape[1], "d_sae": config["d_sae"], "device": device}
        sae: Any
        match config["architecture"]:
            case "topk":
                sae = TopKTrainingSAE(TopKTrainingSAEConfig(**sizes, k=config["k"]))
            case "batchtopk":
                sae = BatchTopKTrainingSAE(BatchTopKTrainingSAEConfig(**sizes, k=config["k"]))
            case "matryoshka":
                widths = [round(sum(config["groups"][: n + 1]) * config["d_sae"]) for n in range(len(config["groups"]))]
                sae = MatryoshkaBatchTopKTrainingSAE(MatryoshkaBatchTopKTrainingSAEConfig(
                    **sizes, k=config["k"], matryoshka_widths=widths))
            case "standard":
                sae = StandardTrainingSAE(StandardTrainingSAEConfig(
                    **sizes, l1_coefficient=config["l1_coefficient"], l1_warm_up_steps=config["warmup_steps"]))
            case "gated":
                sae = GatedTrainingSAE(GatedTrainingSAEConfig(
                    **sizes, l1_coefficient=config["gated_coefficient"], l1_warm_up_steps=config["warmup_steps"]))
            case "jumprelu":  # the tanh penalty, its wide rectangle and gradients to all parameters: as ours
                sae = JumpReLUTrainingSAE(JumpReLUTrainingSAEConfig(
                    **sizes, jumprelu_sparsity_loss_mode="tanh", jumprelu_bandwidth=2.0, jumprelu_init_threshold=0.1,
                    jumprelu_ste_to_input=True, pre_act_loss_coefficient=3e-6,
                    l0_coefficient=config["l0_coefficient"], l0_warm_up_steps=config["num_steps"] // 2))
        self.sae = sae
        self.trainer: Any = SAETrainer(
            SAETrainerConfig(total_training_samples=steps * batch, train_batch_size_samples=batch, lr=config["lr"],
                             lr_warm_up_steps=config["warmup_steps"], lr_decay_steps=config["decay_steps"],
                             lr_end=0.0, device=device, autocast=device != "cpu",
                             dead_feature_window=max(1, steps // 10),
                             logger=LoggingConfig(log_to_wandb=False)),
            sae, iter(()),
        )

    def step(self) -> None:
        self.trainer.maybe_reset_sparsity()
        self.trainer.step(self.next_batch())
        self.trainer.n_training_steps += 1

    def reconstruct(self, x: torch.Tensor) -> tuple[torch.Tensor, float]:
        latents = self.sae.encode(x)
        return self.sae.decode(latents), float((latents > 0).sum() / len(x))


if __name__ == "__main__":
    serve(SAELens)
