"""docs/reliability.md, from what a whole run counted, in one session or in several:

    python -m tests.crash.report docs/reliability.md COUNTS...
"""

import os
import platform
import sys
import textwrap
from collections.abc import Mapping
from pathlib import Path

from tests.crash.counts import Counts

TARGETS = {
    ("system calls", "kills"): 300,
    ("random kills", "kills"): 200,
    ("training", "random kills"): 25,
    ("training", "kills at an operation of a save"): 32,
    ("power loss", "different states judged"): 400,
    ("damage", "bit flips"): 10_000,
    ("damage", "files cut short"): 2_000,
    ("damage", "opens without an alarm"): 1_000,
}
"""Least numbers of a whole run, by piece and by what was counted."""

_TEXT = """# Reliability: what a cache promises, and how each promise was attacked

This page was written by a run of the whole suite; its figures are counts of what ran, on {machine}.
{outcome}

## The promises

1. **What was acknowledged stays.** Once a harvest has committed a unit, the unit is there, whole, with the bytes
   that were computed: after a kill, a full disk, a failing disk, a power cut.
2. **What was not acknowledged is never believed.** A unit has a commit record, and then every file that the record
   names is whole; or it has none, and then no reader sees anything of it.
3. **The same command again finishes the work.** It does at most the units that were open once more, leaves no
   temporaries, and the cache is bit-identical to one that nothing ever happened to (same kind of device, threads
   and versions).
4. **Damage is found before it is used.** `verify` finds every changed byte that the cache promises; a reader
   refuses a damaged block when it first touches it; a whole cache never raises an alarm.

After every crash below, one oracle judged: it reads the cache as the crash left it, lets recovery and the same
command run, compares every promised byte with an undisturbed harvest, runs `verify`, looks for temporaries, and
after `gc` for anything that neither plan nor records vouch for.

## The attacks

{summary}

{pieces}

## Mutants: would the suite notice?

A suite that never fails proves nothing. Each line is a harvest with one call of fsync taken away, or put in another
place; the calls are found in the source, so a new one is tried too. A mutant is judged on states that a power cut
can only leave with it (for the late writer: on pauses). Every one must be caught.

{mutants}

## What is not covered

- **Real power cuts.** The disk is simulated, by weaker rules than ext4, XFS or Btrfs follow. A drive that
  acknowledges a flush and forgets it breaks every program's promises, and these.
- **Network file systems.** NFS and Lustre were not at hand. The protocol rests on `link`, `rename` and `fsync`,
  never on clocks, and takes a link that was made though the server's answer was lost; `python -m harvest doctor`
  tries these calls on the folder at hand.
- **Several machines.** Workers were processes of one machine. The rules for writers of other machines (a counter
  that stands still) were tested with patience set to a second.
- **GPUs.** The real model ran on the CPU. What becomes of a unit's rows after they are in memory is the same code.
- **Forgery.** Checksums find accidents; whoever writes a cache on purpose can write matching ones.

## Again

    make test-crash      # all of it, {minutes} minutes of tests, spread over the cores; writes this page
    make test-system     # a twentieth of it, among other things
    make test            # a few seconds of it

GRANARY_CRASH_SHARE=0.5 with `pytest tests/crash` runs any other share. The suite needs `strace` for kills at system
calls (Debian: `apt-get install strace`); what did not run is printed, and stands here: {not_run}.
"""

_PIECES = {
    "inside": (
        "Kills and errors at every operation, inside one process",
        "A harvest of three units, in one thread and with the real threads of the harvest, is stopped before each of "
        "its operations on files, and each operation fails once, or from then on, with ENOSPC, EIO, EDQUOT or EROFS; "
        "every write is cut short. A failure has to end with exit code 74 or 75 and one line.",
    ),
    "system calls": (
        "Kills and errors at every system call, from outside",
        "strace kills the program before its first, second, ... call of each kind, until it ends by itself; then each "
        "call fails, with each of four errors. The real command, with a tiny model, is killed at a sample of its "
        "calls, from the plan on. A kill counts only if it happened.",
    ),
    "random kills": (
        "Random kills of the real command",
        "`python -m harvest run` with SmolLM2-135M-Instruct is killed while it starts, or shortly after some batch, "
        "fifty times in one harvest, and has to end with the bytes of a harvest that was left alone.",
    ),
    "power loss": (
        "Power loss",
        "Every call of a recorded harvest is followed by a power cut on a simulated disk: bytes that were not fsynced "
        "are gone or half there; names made, renamed, linked or removed without an fsync of their folder are undone "
        "or not; none of these changes survives, or all, or all but up to three, or up to three alone. States that "
        "differ only in temporaries that no record names count once. Then the same after a kill wherever a name is not "
        "durable yet, the same command having gone on: up to a hundred states of each kill are judged.",
    ),
    "late writers": (
        "A writer that wakes late",
        "A writer stops before each of its operations; another, whose numbers differ, takes it for dead and does all "
        "the rest; then the first goes on. Every committed file has to match its record.",
    ),
    "many workers": (
        "Many workers under random kills",
        "Processes that share one cache are killed, and paused for three times longer than the others are patient, "
        "and started again. Every unit has to be committed once, and less than a tenth may be computed twice. Then the "
        "disk is full, again and again: all have to stop with exit code 75 and lose nothing.",
    ),
    "training": (
        "Kills of a training",
        "`python -m train run` is killed by SIGKILL at random times, thirty times in one training, and at every "
        "operation of three saves of a checkpoint; it has to end with the weights, the optimiser's state and the "
        "figures of a training that was left alone, bit for bit.",
    ),
    "damage": (
        "Damage",
        "Bytes, pages, blocks and files of a committed cache are changed behind its back. `verify` has to name the "
        "file, and a fresh reader has to refuse what it is asked for, or give the right rows where only bytes are "
        "damaged that it does not use.",
    ),
}


def main(path: str, *saved: str) -> None:
    """Write the report; a run that tried too little, or in which a test failed, ends with an error."""
    counts = Counts()
    for one in saved:
        counts.add_all(Path(one).read_text())
    missing = too_little(counts)
    counts.not_run += missing
    write(Path(path), counts)
    if missing or counts.failed:
        sys.exit("\n".join([f"{counts.failed} tests failed", *missing]))


def write(path: Path, counts: Counts) -> None:
    """Write the report of a whole run."""
    minutes = max(1, round(sum(counts.seconds.values()) / 60))
    path.write_text(_TEXT.format(
        machine=f"{os.cpu_count()} cores, {platform.system()} {platform.release().split('-')[0]}, "
                f"Python {platform.python_version()}",
        outcome="No promise was broken." if not counts.failed else f"**{counts.failed} tests failed.**",
        summary=_summary(counts),
        pieces="\n\n".join(_piece(counts, name) for name in _PIECES),
        mutants=_table(counts.numbers.get("mutants", {})),
        minutes=minutes,
        not_run="; ".join(sorted(set(counts.not_run))) or "nothing",
    ), encoding="utf-8")


def too_little(counts: Counts) -> list[str]:
    """What a whole run should have reached and did not."""
    found = []
    for (piece, what), least in TARGETS.items():
        numbers = counts.numbers.get(piece, {})
        reached = sum(number for name, number in numbers.items() if name.rpartition(": ")[2] == what)
        if reached < least:
            found.append(f"{piece}: {reached} {what}, expected {least}")
    return found


def _piece(counts: Counts, name: str) -> str:
    title, text = _PIECES[name]
    took = f"{counts.seconds[name]:,.0f} seconds." if counts.seconds.get(name) else "Not run."
    return f"### {title}\n\n{textwrap.fill(f'{text} {took}', 115)}\n\n{_table(counts.numbers.get(name, {}))}"


_LEFT_OUT = {"rows", "cuts", "combinations built"}


def _summary(counts: Counts) -> str:
    """The pieces in one table: what happened how often, errors of all kinds together."""
    lines = ["| attack | tried |", "|---|---|"]
    for name, (title, _) in _PIECES.items():
        sums: dict[str, int] = {}
        for what, number in counts.numbers.get(name, {}).items():
            column = what.rpartition(": ")[2]
            column = "errors" if column.isupper() else column
            if column in _LEFT_OUT:
                continue
            sums[column] = sums.get(column, 0) + number
        lines.append(f"| {title} | {', '.join(f'{number:,} {what}' for what, number in sums.items())} |")
    return "\n".join(lines)


def _table(numbers: Mapping[str, int]) -> str:
    """A table of numbers; of those that are called "row: column" one with columns."""
    if not all(": " in name for name in numbers):
        lines = ["| what | times |", "|---|---:|", *(f"| {what} | {number:,} |" for what, number in numbers.items())]
        return "\n".join(lines)
    cells = {tuple(name.rsplit(": ", 1)): number for name, number in numbers.items()}
    columns = list(dict.fromkeys(column for _, column in cells))
    lines = ["| | " + " | ".join(columns) + " |", "|---|" + "---:|" * len(columns)]
    for row in dict.fromkeys(row for row, _ in cells):
        figures = (f"{cells[row, column]:,}" if (row, column) in cells else "" for column in columns)
        lines.append(f"| {row} | " + " | ".join(figures) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    main(*sys.argv[1:])
