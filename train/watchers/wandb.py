"""Weights & Biases: one run for each SAE, several of them open at once. Its own variables decide where it goes:
WANDB_MODE=offline needs neither a network nor an account, and `wandb sync` uploads later.
"""

from collections.abc import Mapping

from train.watchers.base import PROJECT, WatchedRun


class WandbWatcher:
    """Logs to a run that goes on under the same id when the training does."""

    def __init__(self, run: WatchedRun) -> None:
        import wandb

        self._run = wandb.init(project=PROJECT, name=run.name, group=run.group, id=f"{run.name}-{run.run_id}",
                               resume="allow", reinit="create_new", dir=run.folder, config=dict(run.config))

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        """See `Watcher`. A step that the service has already is dropped there: the figures are the same ones."""
        self._run.log(dict(figures), step=step)

    def close(self) -> None:
        """See `Watcher`."""
        self._run.finish()
