"""Two SAEs' figures to every watcher at once, with the real packages: for `test_watchers`.

    python watchers_writer.py <folder>

The folder's ``one`` and ``two`` are the SAEs'. Each is closed after two lines and goes on with two more, of which the
first repeats the last. Says what TensorBoard and Trackio have kept, as JSON; W&B's files lie in the SAEs' folders.
"""

import json
import sys
from pathlib import Path

from train.watchers import WATCHERS, Watchers
from train.watchers.base import PROJECT, WatchedRun

folder = Path(sys.argv[1])
for start, steps in ((0, (10, 20)), (10, (20, 30))):
    open_ = [Watchers(list(WATCHERS), WatchedRun(name, "demo/layer9", folder / name, "ab12", start, {"lr": 1e-3}))
             for name in ("one", "two")]
    for step in steps:
        for number, watchers in enumerate(open_):
            watchers.log(step, {"step": step, "l0": step + number, "aux": None})
    for watchers in open_:
        watchers.close()

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator  # noqa: E402
from trackio.sqlite_storage import SQLiteStorage  # noqa: E402

boards = {}
for name in ("one", "two"):
    events = EventAccumulator(str(folder / name / "tensorboard")).Reload()
    boards[name] = {tag: [(event.step, event.value) for event in events.Scalars(tag)]
                    for tag in events.Tags()["scalars"]}
tracked = {run: [(row["step"], row["l0"]) for row in SQLiteStorage.get_logs(PROJECT, run)]
           for run in SQLiteStorage.get_runs(PROJECT)}
print(json.dumps({"tensorboard": boards, "trackio": tracked}))
