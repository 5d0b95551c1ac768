"""The conversations that are looked at before a harvest: a sample of a data set, or of a cache's plan."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from harvest.conversation import Conversation, Message, Skipped
from harvest.inspection import Evenly, Statistics
from harvest.job import Job
from harvest.mixture import Mixture
from harvest.plan import TRUNCATED
from harvest.sources import Source, check_skipped
from harvest.template import Encoded
from shared.errors import DataError, RecipeError
from shared.format.tokens import TokenType
from shared.progress import Progress
from shared.reading.cache import Cache
from shared.showing.token_text import Decode, visible

_CHUNK = 64
"""Rows that are encoded together, as few as is still fast: memory is that of a chunk."""

_SETTINGS = ("max_length", "control_tokens", "template_variables")
"""Keys of the recipe that decide tokens and classes."""

Row = Conversation | Skipped


@dataclass(frozen=True)
class Wanted:
    """Which conversations are shown, and how many the statistics are taken from."""

    conversations: int = 3
    """Shown, evenly spread over the sample, where none is named."""
    numbers: tuple[int, ...] = ()
    """Rows that are shown, from 0."""
    places: tuple[str, ...] = ()
    """Places of rows that are shown: "my.jsonl:17"."""
    sample: int | None = 2000
    """Rows of each data set that the statistics are taken from; None for all."""
    evenly: bool = False
    """Take them evenly from a whole data set, which is read to its end, instead of its first ones."""


@dataclass(frozen=True)
class Seen:
    """A row that is shown."""

    number: int
    """Of its data set or plan, from 0."""
    place: str
    encoded: Encoded | None
    """As the model will see it; None if it is skipped."""
    length: int = 0
    """Tokens before the cut, where that is known."""
    truncated: bool = False
    skipped: Skipped | None = None


@dataclass
class Inspection:
    """Everything that is said of a data set or a cache."""

    model: str
    sources: list[str]
    """Names of the data sets."""
    settings: dict[str, Any]
    """What decides tokens and classes: order, max_length, control_tokens, template_variables."""
    decode: Decode
    cache: str | None = None
    """The cache's path and id; None for a data set that is read."""
    statistics: Statistics = field(default_factory=Statistics)
    shown: list[Seen] = field(default_factory=list)
    extent: str = ""
    """Which rows the sample is."""
    default_system: str = ""
    """The template's own system prompt, "" if it has none or none was seen."""
    notes: list[str] = field(default_factory=list)
    """What stands in the way of a harvest."""


def inspect_source(job: Job, wanted: Wanted) -> Inspection:
    """Read and encode a sample of a job's data set, in bounded memory; nothing is written.

    Raises:
        DataError: there is no conversation. RecipeError: a row that is to be shown is not there.
        UserError: what `Source.read` raises.
    """
    config = job.config
    found = Inspection(
        job.model.name, job.source.names,
        {"order": job.order.identity, **{name: getattr(config, name) for name in _SETTINGS}},
        lambda ids: str(job.tokenizer.backend_tokenizer.decode(ids, skip_special_tokens=False)),
    )
    spread: Evenly[Seen] = Evenly(wanted.conversations)
    picked: list[tuple[int, Row]] = []
    malformed: list[Skipped] = []
    extents = []
    with Progress("inspect", total=0, unit="rows") as progress:
        for source, part in enumerate(_parts(job.source)):
            rows = _Watched(part, wanted, progress)
            for chunk in _chunks(_sample(rows, wanted), _CHUNK):
                for seen in _encode(job, chunk):
                    if seen.encoded is not None:
                        found.statistics.add(seen.encoded, found.decode, seen.length, source, seen.truncated)
                        spread.add(seen)
                    elif seen.skipped is not None:
                        found.statistics.skip(seen.skipped.reason)
                        malformed = [*malformed, seen.skipped][:3]
            extents.append(_extent(rows, wanted))
            rows.find_the_rest()
            picked += rows.picked
    found.extent = "; ".join(f"{name}: {extent}" if len(extents) > 1 else extent
                             for name, extent in zip(found.sources, extents, strict=True))
    _check_picked(picked, wanted, " + ".join(found.sources))
    found.shown = list(_encode(job, picked)) if wanted.numbers or wanted.places else spread.items()
    found.default_system = _own_system_prompt(job, found.decode) or found.statistics.default_system
    try:
        check_skipped(found.statistics.num_rows, dict(found.statistics.skipped), malformed, config.max_skipped)
    except DataError as error:
        if not found.statistics.num_conversations:
            raise
        found.notes.append(visible(f"A harvest of these rows would stop: {error}"))
    return found


def inspect_cache(cache: Cache, wanted: Wanted) -> Inspection:
    """Take the conversations of a cache's plan; of a large plan evenly, held-out ones included.

    Raises:
        RecipeError: a conversation that is to be shown is not in the plan. CorruptError: the plan is damaged.
    """
    plan = cache.plan
    found = Inspection(
        plan.name_of("model"), plan.sources,
        {name: plan.identity.get(name) for name in ("order", *_SETTINGS)},
        cache.vocabulary.decode, f"{cache.path}, id {plan.cache_id[:12]}",
    )
    total = plan.num_conversations
    for number in wanted.numbers:
        if number >= total:
            raise RecipeError(f"--number {number}: {cache.path} holds {total:,} conversations, numbered from 0. Choose "
                              f"--number among 0 to {total - 1}.")
    count = min(total, wanted.sample or total)
    sample = [number * total // count for number in range(count)]
    spread: Evenly[int] = Evenly(wanted.conversations)
    sources = cache.array("conversations/source")
    with Progress("inspect", total=count, unit="conversations") as progress:
        for number in sample:
            seen = _of_cache(cache, number)
            if seen.encoded is not None and len(seen.encoded):
                source = int(sources.read(number, number + 1).item())
                found.statistics.add(seen.encoded, found.decode, seen.length, source, seen.truncated)
                spread.add(number)
            progress.advance(1)
    found.shown = [_of_cache(cache, number) for number in wanted.numbers or spread.items()]
    found.extent = (f"all {total:,} conversations of the plan" if count == total
                    else f"{count:,} of the plan's {total:,} conversations, evenly")
    found.statistics.skipped.update(plan.num_skipped)
    found.default_system = found.statistics.default_system
    return found


def _of_cache(cache: Cache, number: int) -> Seen:
    start, stop = (int(row) for row in cache.conversation_offset[number:number + 2])
    arrays: list[Any] = [cache.array(f"tokens/{name}").read(start, stop) for name in Encoded.__dataclass_fields__]
    flags = int(cache.array("conversations/flags").read(number, number + 1).item())
    held_out = "held out" if number >= cache.plan.num_train_conversations else "to train on"
    return Seen(number, held_out, Encoded(*arrays), stop - start, bool(flags & TRUNCATED))


class _Watched:
    """The rows of one data set with their numbers; notes those that are to be shown as they pass."""

    def __init__(self, rows: Iterator[Row], wanted: Wanted, progress: Progress) -> None:
        self._rows = rows
        self._numbers, self._places = set(wanted.numbers), set(wanted.places)
        self._progress = progress
        self.num_read = 0
        self.at_end = False
        self.picked: list[tuple[int, Row]] = []

    def __iter__(self) -> Iterator[tuple[int, Row]]:
        return self

    def __next__(self) -> tuple[int, Row]:
        row = next(self._rows, None)
        if row is None:
            self.at_end = True
            raise StopIteration
        number = self.num_read
        self.num_read += 1
        self._progress.advance(1)
        if number in self._numbers or row.place in self._places:
            self.picked.append((number, row))
        return number, row

    def find_the_rest(self) -> None:
        """Read on until every row that is to be shown has passed, or to the end."""
        while len(self.picked) < len(self._numbers) + len(self._places) and next(self, None) is not None:
            pass


def _parts(source: Source | Mixture) -> list[Iterator[Row]]:
    """The rows of each data set of a mixture by themselves, so that the sample has rows of each."""
    return [Mixture((part,)).read() for part in source.parts] if isinstance(source, Mixture) else [source.read()]


def _sample(rows: _Watched, wanted: Wanted) -> Iterator[tuple[int, Row]]:
    if wanted.sample is None or not wanted.evenly:
        yield from islice(rows, wanted.sample)
        return
    chosen: Evenly[tuple[int, Row]] = Evenly(wanted.sample)
    for item in rows:
        chosen.add(item)
    yield from chosen.items()


def _extent(rows: _Watched, wanted: Wanted) -> str:
    """Which rows the sample was, once it is taken."""
    num_read = rows.num_read
    next(rows, None)
    if not rows.at_end:
        return f"the first {num_read:,} rows (there are more: --sample all, or --evenly)"
    if wanted.sample is not None and num_read > wanted.sample:
        return f"{wanted.sample:,} of {num_read:,} rows, evenly"
    return f"all {num_read:,} rows"


def _encode(job: Job, rows: Iterable[tuple[int, Row]]) -> Iterator[Seen]:
    rows = list(rows)
    encoded = iter(job.template.encode([row for _, row in rows if isinstance(row, Conversation)]))
    for number, row in rows:
        result = row if isinstance(row, Skipped) else next(encoded)
        if isinstance(result, Skipped):
            yield Seen(number, row.place, None, skipped=result)
        else:
            cut = result.cut(job.config.max_length)
            if job.order.kind == "fast":  # in blocks, the plan says what begins a sequence
                cut = cut.as_sequence()
            yield Seen(number, row.place, cut, len(result), len(cut) < len(result))


def _own_system_prompt(job: Job, decode: Decode) -> str:
    """What the template says to the model where a conversation has no system prompt."""
    [result] = job.template.encode([Conversation((Message("user", "Hello"),), "")])
    if isinstance(result, Skipped):
        return ""
    return decode(result.token_id[(result.token_type & TokenType.DEFAULT_SYSTEM) != 0].tolist())


def _check_picked(picked: list[tuple[int, Row]], wanted: Wanted, name: str) -> None:
    numbers, places = {number for number, _ in picked}, {row.place for _, row in picked}
    for number in wanted.numbers:
        if number not in numbers:
            raise RecipeError(f"--number {number}: {name} has fewer rows; they are numbered from 0. Choose a smaller "
                              "--number.")
    for place in wanted.places:
        if place not in places:
            raise RecipeError(f"--place {place!r}: no row of {name} has this place. Expected a file and its line, like "
                              "--place my.jsonl:17; each conversation that is shown has its place above it.")


def _chunks(rows: Iterator[tuple[int, Row]], size: int) -> Iterator[list[tuple[int, Row]]]:
    while chunk := list(islice(rows, size)):
        yield chunk
