"""Speed and memory of n-gram deduplication, on synthetic chats of the FAST paper's size and share of duplicates.

    python -m benchmarks.deduplicate [--sizes 30000 300000 1000000] [--memory-mib 256]

Speed: megabytes of text a second of one core, of `find_duplicates` (one pass over the data and the comparison of its
n-grams) and of a plain loop that keeps tuples of 20 words in a set, on the same chats in memory, interleaved. Also of
str.split() alone, which any program would need.

Memory: peak resident set of a process that reads ever more chats, which are made as they are read, with a small budget,
so that what goes to disk is out of the figure and what stays in memory for each chat is in it. A line through the
points gives the 11,425,231 chats of the paper. What the plain loop takes is measured beside it.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from functools import cache

import numpy as np

from harvest.config import Deduplicate
from harvest.conversation import Conversation, Message
from harvest.deduplicate import MEMORY_BYTES, find_duplicates

FAST_SAMPLES = 11_425_231
SHARES = {"copy": 0.30, "turn": 0.20, "prompt": 0.09}
"""How many chats are an earlier one, have a turn of an earlier one, or one of 500 system prompts: about 41.6 % stay."""

_MEASURED = """
import json, re, sys, time
from pathlib import Path
from benchmarks.deduplicate import chats, find_duplicates, plain_loop, Deduplicate
kind, number, memory, folder = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
def peak():  # of this program; getrusage's is that of the process that started it where it was larger
    return int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) / 1024
before = peak()
started = time.process_time()
if kind == "ours":
    found = find_duplicates(lambda: chats(number), Deduplicate(), memory_bytes=memory, folder=Path(folder))
    dropped = len(found)
else:
    dropped = plain_loop(chats(number))
print(json.dumps({"dropped": dropped, "seconds": time.process_time() - started, "before_mib": before,
                  "peak_mib": peak()}))
"""


@cache
def _vocabulary() -> tuple[list[str], "np.ndarray[tuple[int], np.dtype[np.int64]]"]:
    """Words of 2 to 12 letters, and the word of each of 2^16 quantiles, by Zipf's law."""
    rng = np.random.default_rng(0)
    letters = rng.choice(list("abcdefghijklmnopqrstuvwxyz"), (50_000, 12))
    lengths = rng.integers(2, 13, 50_000)
    words = ["".join(row[:length]) for row, length in zip(letters, lengths, strict=True)]
    share = 1 / (np.arange(len(words)) + 10.0)
    quantiles = np.searchsorted(np.cumsum(share) / share.sum(), (np.arange(1 << 16) + 0.5) / (1 << 16))
    return words, quantiles


def _text(seed: int, length: int) -> str:
    words, quantiles = _vocabulary()
    drawn = np.random.Generator(np.random.SFC64(seed)).integers(0, 1 << 16, length)
    return " ".join(map(words.__getitem__, quantiles[drawn].tolist()))


def chats(number: int) -> Iterator[Conversation]:
    """Chats of a user's and an assistant's turn, 450 words on average; all of it follows from their number."""
    rng = np.random.default_rng(1)
    kinds = rng.choice([*SHARES, "new"], number, p=[*SHARES.values(), 1 - sum(SHARES.values())]).tolist()
    kinds[0] = "new"
    earlier = (rng.random(number) * np.arange(number)).astype(np.int64).tolist()
    lengths = (rng.gamma(2.0, 225.0, number).astype(np.int64) + 30).tolist()

    def original(at: int, kind: str) -> int:
        while kinds[at] in {"copy", kind}:
            at = earlier[at]
        return at

    for at in range(number):
        whole, user = original(at, "copy"), original(at, "turn")
        turns = [Message("user", _text(2 * user, lengths[user] // 3 + 20)),
                 Message("assistant", _text(2 * whole + 1, 2 * lengths[whole] // 3))]
        if kinds[whole] == "prompt":
            turns = [Message("system", _text(2**40 + earlier[whole] % 500, 40)), *turns]
        yield Conversation(tuple(turns), f"made:{at}")


def plain_loop(conversations: Iterator[Conversation]) -> int:
    """Algorithm 1 as one writes it down: how many chats it drops."""
    seen: set[tuple[str, ...]] = set()
    dropped = 0
    for conversation in conversations:
        ngrams: set[tuple[str, ...]] = set()
        for message in conversation.messages:
            words = message.content.split()
            ngrams.update(tuple(words[at : at + 20]) for at in range(len(words) - 19))
        if seen.isdisjoint(ngrams):
            seen |= ngrams
        else:
            dropped += 1
    return dropped


def speed(number: int, rounds: int) -> dict[str, object]:
    """Seconds of the processor of each contender, in turn."""
    held = [*chats(number)]
    megabytes = sum(len(message.content.encode()) for chat in held for message in chat.messages) / 1e6

    def split() -> int:
        return sum(len(message.content.split()) for chat in held for message in chat.messages)

    contenders = {"find_duplicates": lambda: len(find_duplicates(lambda: iter(held), Deduplicate())),
                  "plain loop": lambda: plain_loop(iter(held)), "str.split": split}
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    results = {}
    for _ in range(rounds):
        for name, contender in contenders.items():
            started = time.process_time()
            results[name] = contender()
            seconds[name].append(time.process_time() - started)
            print(f"  {name:16s} {megabytes / seconds[name][-1]:6.1f} MB/s", flush=True)
    assert results["find_duplicates"] == results["plain loop"]
    ratios = [plain / ours for plain, ours in zip(seconds["plain loop"], seconds["find_duplicates"], strict=True)]
    return {"chats": number, "megabytes": megabytes, "words": results["str.split"], "seconds": seconds,
            "megabytes_a_second": {name: megabytes / float(np.median(values)) for name, values in seconds.items()},
            "best_megabytes_a_second": {name: megabytes / min(values) for name, values in seconds.items()},
            "times_as_fast_as_plain_loop": float(np.median(ratios))}


def measured(kind: str, number: int, memory: int) -> dict[str, float]:
    """One run in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        run = subprocess.run([sys.executable, "-c", _MEASURED, kind, str(number), str(memory), folder], check=True,
                             text=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    figures: dict[str, float] = json.loads(run.stdout) | {"wall_seconds": time.perf_counter() - started}
    kept = 1 - figures["dropped"] / number
    print(f"  {kind} {number:9,} chats: peak {figures['peak_mib']:7,.0f} MiB, {kept:.1%} kept, "
          f"{figures['wall_seconds']:.0f} s with making them", flush=True)
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[30_000, 300_000, 1_000_000])
    parser.add_argument("--plain-sizes", type=int, nargs="*", default=[10_000, 30_000])
    parser.add_argument("--memory-mib", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    from benchmarks.measuring import save  # it loads torch, which would be in the figures

    fast = speed(8_000, arguments.rounds)
    ours = {number: measured("ours", number, arguments.memory_mib << 20) for number in arguments.sizes}
    plain = {number: measured("plain", number, 0) for number in arguments.plain_sizes}
    sizes, peaks = [*ours], [run["peak_mib"] for run in ours.values()]
    slope, base = np.polyfit(sizes, peaks, 1)
    expected = base + slope * FAST_SAMPLES + MEMORY_BYTES / 2**20 - arguments.memory_mib
    print(f"{FAST_SAMPLES:,} chats: {slope * 2**20:.0f} bytes each, {expected / 1024:.2f} GiB with the default budget")
    save("deduplicate", {"speed": fast, "budget_mib": arguments.memory_mib, "memory": ours, "plain_loop_memory": plain,
                         "bytes_a_chat": slope * 2**20, "extrapolated": {
                             "chats": FAST_SAMPLES, "budget_mib": MEMORY_BYTES >> 20, "peak_gib": expected / 1024}})


if __name__ == "__main__":
    main()
