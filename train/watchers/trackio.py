"""Trackio: a local database (TRACKIO_DIR), which `trackio show` serves; no network and no account."""

import contextvars
from collections.abc import Mapping

from train.watchers.base import PROJECT, WatchedRun


class TrackioWatcher:
    """Logs to a run that goes on under the same name when the training does."""

    def __init__(self, run: WatchedRun) -> None:
        import trackio

        # Each in a context of its own: trackio ends the run that it finds in its context when another begins.
        self._run = contextvars.Context().run(
            trackio.init, project=PROJECT, name=f"{run.name}-{run.run_id}", group=run.group, resume="allow",
            config=dict(run.config), embed=False)

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        """See `Watcher`."""
        self._run.log(dict(figures), step=step)

    def close(self) -> None:
        """See `Watcher`."""
        self._run.finish()
