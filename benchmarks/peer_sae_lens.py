"""sae-lens's own trainer as a contender: run by the interpreter of the peers' environment.

    python benchmarks/peer_sae_lens.py FOLDER CONFIG.json

Reads commands from stdin, one a line, and answers each with one line of JSON: ``steps N`` trains N more
steps and answers with their seconds; ``evaluate`` answers with explained variance and L0 on held-out rows.
FOLDER holds train.npy and held_out.npy, float32 ``[rows, d_in]``, scaled already.
"""

import json
import sys
import time
from pathlib import Path

import numpy as np
import torch
from sae_lens import __version__
from sae_lens.config import LoggingConfig, SAETrainerConfig
from sae_lens.saes.topk_sae import TopKTrainingSAE, TopKTrainingSAEConfig
from sae_lens.training.sae_trainer import SAETrainer


def main() -> None:
    folder, config = Path(sys.argv[1]), json.loads(sys.argv[2])
    torch.set_num_threads(config["threads"])
    torch.manual_seed(0)
    train = torch.from_numpy(np.load(folder / "train.npy"))
    held_out = torch.from_numpy(np.load(folder / "held_out.npy"))
    batch, steps = config["batch_size"], config["num_steps"]
    sae = TopKTrainingSAE(TopKTrainingSAEConfig(d_in=train.shape[1], d_sae=config["d_sae"], k=config["k"]))
    trainer = SAETrainer(
        SAETrainerConfig(total_training_samples=steps * batch, train_batch_size_samples=batch, lr=config["lr"],
                         lr_warm_up_steps=config["warmup_steps"], lr_decay_steps=config["decay_steps"], lr_end=0.0,
                         dead_feature_window=max(1, steps // 10), logger=LoggingConfig(log_to_wandb=False)),
        sae, iter(train.split(batch)),
    )
    print(json.dumps({"sae_lens": __version__, "torch": torch.__version__}), flush=True)
    for line in sys.stdin:
        command, *arguments = line.split()
        if command == "steps":
            started = time.perf_counter()
            for _ in range(int(arguments[0])):
                trainer.maybe_reset_sparsity()
                trainer.step(next(trainer.data_provider))
                trainer.n_training_steps += 1
            print(json.dumps({"seconds": time.perf_counter() - started}), flush=True)
        elif command == "evaluate":
            with torch.no_grad():
                latents = sae.encode(held_out)
                error = (held_out - sae.decode(latents)).square().sum()
                variance = (held_out - held_out.mean(0)).square().sum()
            l0 = float((latents > 0).sum() / len(held_out))
            print(json.dumps({"explained_variance": float(1 - error / variance), "l0": l0}), flush=True)


if __name__ == "__main__":
    main()
