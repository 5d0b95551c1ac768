"""TensorBoard: event files in the SAE's folder. To see them: tensorboard --logdir runs"""

from collections.abc import Mapping

from train.watchers.base import WatchedRun

_FLUSH_SECONDS = 30


class TensorBoardWatcher:
    """Writes scalars with torch's own writer."""

    def __init__(self, run: WatchedRun) -> None:
        from torch.utils.tensorboard import SummaryWriter  # needs the package tensorboard

        # purge_step makes TensorBoard drop what a killed run logged after its last checkpoint.
        self._writer = SummaryWriter(str(run.folder / "tensorboard"), flush_secs=_FLUSH_SECONDS,
                                     purge_step=run.start_step + 1 if run.start_step else None)

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        """See `Watcher`."""
        for name, value in figures.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        """See `Watcher`."""
        self._writer.close()
