"""Memory and speed of planning: every conversation read, templated, tokenised and kept.

    python -m benchmarks.plan [--sizes 20000 100000] [--processes 1 2]

Synthetic chats of two to six turns, put together from lines of the embedded chats, go through the embedded model's
template. The whole set is planned (plan_tokens = "all"), which is what memory could grow with. Memory is the largest
sum over the processes of their resident sets. At the smallest size the number of processes is varied, in turn, and
the plans are compared: they are the same bytes.
"""

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.measuring import save
from harvest.embedded import read_chats
from shared.format.plan import read_plan


def write_chats(path: Path, number: int) -> None:
    """Write so many different chats."""
    lines = [message.content for chat in read_chats() for message in chat.messages if message.content]
    rng = random.Random(0)
    with path.open("w", encoding="utf-8") as file:
        for _ in range(number):
            turns = rng.choices(lines, k=rng.choice((2, 2, 4, 6)))
            messages = [{"role": ("user", "assistant")[turn % 2], "content": text} for turn, text in enumerate(turns)]
            file.write(json.dumps({"messages": messages}) + "\n")


def resident_mib(process: int) -> float:
    """Resident sets of a process and all that it started, together."""
    total, waiting = 0.0, [process]
    while waiting:
        one = Path("/proc") / str(waiting.pop())
        try:
            fields = dict(line.split(":", 1) for line in (one / "status").read_text().splitlines() if ":" in line)
            total += int(fields["VmRSS"].split()[0]) / 1024
            waiting += [int(child) for child in (one / "task" / one.name / "children").read_text().split()]
        except (OSError, KeyError):
            continue  # it has just ended
    return total


def plan(data: Path, cache: Path, processes: int) -> dict[str, float]:
    """Plan a cache in a process of its own; seconds and peak memory."""
    command = [sys.executable, "-m", "harvest", "plan", "--model", "smollm2-135m-instruct", "--dataset", str(data),
               "--cache", str(cache), "--num-tokens", "1000000", "--set", "harvest.plan_tokens=all",
               "--processes", str(processes)]
    started, peak = time.perf_counter(), 0.0
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as running:
        while running.poll() is None:
            peak = max(peak, resident_mib(running.pid))
            time.sleep(0.1)
    assert running.returncode == 0
    return {"seconds": time.perf_counter() - started, "peak_mib": peak}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[20_000, 100_000])
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2])
    arguments = parser.parse_args()
    results, plans = [], {}
    for size in sorted(arguments.sizes):
        counts = arguments.processes if size == min(arguments.sizes) else arguments.processes[-1:]
        with tempfile.TemporaryDirectory() as folder:
            data = Path(folder) / "chats.jsonl"
            write_chats(data, size)
            for processes in counts:
                cache = Path(folder) / str(processes)
                figures = plan(data, cache, processes)
                plans[size, processes] = made = read_plan(cache)
                results.append({"conversations": size, "tokens": made.num_rows, "processes": processes, **figures})
                print(f"{size:9,} conversations, {made.num_rows:12,} tokens, {processes} processes: "
                      f"{figures['seconds']:7.1f} s, {figures['peak_mib']:7.0f} MiB", flush=True)
            assert all(plans[size, processes] == made for processes in counts), "the plans differ"
    save("plan", {"runs": results})


if __name__ == "__main__":
    main()
