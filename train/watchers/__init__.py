"""Watchers by the name that [train] watch gives them. Their packages are extras, imported when one is opened."""

import logging
import sys
from collections.abc import Callable, Mapping, Sequence

from shared.errors import RecipeError
from train.watchers.base import WatchedRun, Watcher
from train.watchers.tensorboard import TensorBoardWatcher
from train.watchers.trackio import TrackioWatcher
from train.watchers.wandb import WandbWatcher

WATCHERS: dict[str, Callable[[WatchedRun], Watcher]] = {
    "tensorboard": TensorBoardWatcher,
    "wandb": WandbWatcher,
    "trackio": TrackioWatcher,
}

_log = logging.getLogger(__name__)


def open_watchers(names: Sequence[str], runs: Sequence[WatchedRun]) -> list["Watchers"]:
    """The watchers of each run. Where some cannot be opened, the others are closed; raises as `Watchers`."""
    opened: list[Watchers] = []
    try:
        for run in runs:
            opened.append(Watchers(names, run))
    except BaseException:
        for watchers in opened:
            watchers.close()
        raise
    return opened


class Watchers:
    """The watchers of one SAE. One that fails while training is left out from then on: training does not stop."""

    def __init__(self, names: Sequence[str], run: WatchedRun) -> None:
        """Open them.

        Raises:
            RecipeError: a package is not installed, or its service cannot be begun with.
        """
        self._open: dict[str, Watcher] = {}
        try:
            for name in names:
                self._open[name] = self._begin(name, run)
        except BaseException:
            self.close()
            raise

    @staticmethod
    def _begin(name: str, run: WatchedRun) -> Watcher:
        try:
            return WATCHERS[name](run)
        except ImportError as error:
            raise RecipeError(f"[train].watch: {name!r} needs a package that is not installed here ({error}). "
                              f"Install it: {sys.executable} -m pip install -e \".[{name}]\"") from error
        except Exception as error:  # a third party's own: no account, no network, no space
            lines = str(error).strip().splitlines() or [type(error).__name__]
            offline = " Or let it stay offline: WANDB_MODE=offline" if name == "wandb" else ""
            raise RecipeError(f"[train].watch: {name!r} could not be opened: {lines[0]} Mend that, or leave it "
                              f"out: --set train.watch=[]{offline}") from error

    def log(self, step: int, figures: Mapping[str, float | None]) -> None:
        """Hand on the figures of a line; those that are not defined are left out."""
        defined = {key: value for key, value in figures.items() if value is not None and key != "step"}
        for name, watcher in list(self._open.items()):
            try:
                watcher.log(step, defined)
            except Exception as error:
                _log.warning("%s failed at step %d and is left out from here: %s", name, step, error)
                del self._open[name]

    def close(self) -> None:
        """Close those that are still open."""
        for name, watcher in self._open.items():
            try:
                watcher.close()
            except Exception as error:
                _log.warning("%s failed while it was closed: %s", name, error)
        self._open = {}
