"""The kept conversations of a data set as a file, and a report of what was dropped for what."""

import contextlib
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from harvest.config import Deduplicate
from harvest.conversation import Conversation, Skipped
from harvest.deduplicate import Duplicates
from harvest.jsonl_output import write_jsonl
from harvest.ngrams import Ngrams
from harvest.sources import Source, check_skipped
from shared.errors import DataError
from shared.progress import Progress

_MOST_SHOWN = 5
_NGRAM_CHARACTERS = 1000


@dataclass(frozen=True)
class Reason:
    """An n-gram for which conversations were dropped."""

    count: int
    """Conversations that were dropped for it."""
    original: str
    """Place of a kept conversation that has it."""
    ngram: str


@dataclass(frozen=True)
class Summary:
    """What became of a data set's rows."""

    num_read: int
    """Conversations."""
    num_dropped: int
    skipped: Counter[str]
    """Rows that are no conversations, by reason."""
    reasons: list[Reason]
    """The n-grams that dropped most, the first one first."""


def write_kept(
    source: Source, duplicates: Duplicates, options: Deduplicate, output: Path | None, report: Path | None
) -> Summary:
    """Read a data set again and write what is no duplicate, as rows of ``messages``, and a line for what is one.

    Args:
        output: JSONL of the kept conversations; None for none.
        report: JSONL of the others, each with its place, that of the kept one which it is a duplicate of, and the
            text of an n-gram that both have (its first 1,000 characters).

    Raises:
        DataError: it has no conversation, or is not what it was when its duplicates were found.
        TryAgainError, StorageError: a file cannot be written.
    """
    ngrams = Ngrams(options)
    originals = {*duplicates.original.tolist()}
    places: dict[int, str] = {}
    skipped: Counter[str] = Counter()
    most = dict(zip(*_most_common(duplicates), strict=True))
    reasons: dict[int, Reason] = {}
    examples: list[Skipped] = []
    number = 0
    with (
        write_jsonl(output) if output else contextlib.nullcontext(_nowhere) as keep,
        write_jsonl(report) if report else contextlib.nullcontext(_nowhere) as tell,
        Progress("write", total=duplicates.num_read, unit="conversations") as progress,
    ):
        for row in source.read():
            if isinstance(row, Skipped):
                skipped[row.reason] += 1
                examples = [*examples, row][:_MOST_SHOWN]
                continue
            place = duplicates.find(number)
            if place is None:
                keep({"messages": row.as_dicts()})
                if number in originals:
                    places[number] = row.place
            else:
                original = places[int(duplicates.original[place])]
                shared = int(duplicates.ngram[place])
                if report or (shared in most and shared not in reasons):
                    text = _text(ngrams, row, shared, source)
                    tell({"place": row.place, "duplicate_of": original, "ngram": text[:_NGRAM_CHARACTERS]})
                    if shared in most and shared not in reasons:
                        reasons[shared] = Reason(most[shared], original, text)
            number += 1
            progress.advance(1)
        if number != duplicates.num_read:
            raise _changed(source)
        check_skipped(number + skipped.total(), skipped, examples, 1.0)
    return Summary(number, len(duplicates), skipped, [reasons[shared] for shared in most])


def _nowhere(value: object) -> None:
    pass


def _most_common(duplicates: Duplicates) -> tuple[list[int], list[int]]:
    """The shared n-grams that dropped most, most first, and how many each."""
    ngram, count = np.unique(duplicates.ngram, return_counts=True)
    most = np.argsort(-count, kind="stable")[:_MOST_SHOWN]
    return ngram[most].tolist(), count[most].tolist()


def _text(ngrams: Ngrams, row: Conversation, shared: int, source: Source) -> str:
    text = ngrams.text_of(row, shared)
    if text is None:
        raise _changed(source)
    return text


def _changed(source: Source) -> DataError:
    return DataError(f"{source.name} is not what it was when its duplicates were found. Expected data that stays as it "
                     "is: wait until whoever writes it is done, then give the same command again.")
