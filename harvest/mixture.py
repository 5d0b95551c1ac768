"""Several data sets as one: each with its share, and ``conversations/source`` saying which one a row is of."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import xxhash

from harvest.config import HarvestConfig, MixturePart
from harvest.conversation import Conversation, Skipped
from harvest.normalise import Normalisation
from harvest.sources import Source, find_source


@dataclass(frozen=True)
class Mixture:
    """Data sets read one after the other; of each a share of its conversations, chosen by hash."""

    parts: tuple[tuple[Source, MixturePart], ...]

    @property
    def names(self) -> list[str]:
        """The names that ``conversations/source`` numbers."""
        return [source.name for source, _ in self.parts]

    @property
    def name(self) -> str:
        """All names, for people."""
        return " + ".join(self.names)

    def holds_text(self) -> bool:
        """Whether any part holds plain text."""
        return any(source.holds_text() for source, _ in self.parts)

    @property
    def identity(self) -> dict[str, Any]:
        """The parts by number, each with weight and seed."""
        return {"name": self.name, "mixture": {
            str(number): {**source.identity, "weight": part.weight, "seed": part.seed}
            for number, (source, part) in enumerate(self.parts)
        }}

    def read(self) -> Iterator[Conversation | Skipped]:
        """As `Source.read`. Malformed rows are left out in the same share, so that theirs stays what it is."""
        for number, (source, part) in enumerate(self.parts):
            for row in source.read():
                if is_taken(row, part.weight, part.seed):
                    yield row if isinstance(row, Skipped) else replace(row, source=number)


def is_taken(row: Conversation | Skipped, weight: float, seed: int) -> bool:
    """Whether a row is among the share ``weight`` of its data set.

    By hash of the seed and of the conversation (of its place, if malformed), so that it depends on no other row:
    not on their order, nor on how many processes read them. A larger weight takes the same ones and more.
    """
    name = row.place if isinstance(row, Skipped) else f"{row.key:016x}"
    return weight >= 1 or xxhash.xxh3_64_intdigest(f"mixture:{seed}:{name}".encode()) < weight * 2**64


def find_data(config: HarvestConfig, default: str, kept: Mapping[str, Any]) -> Source | Mixture:
    """The data set or mixture that a recipe names.

    Args:
        default: the data set where it names none.
        kept: what the plan that is there says of its data set; empty where there is none.

    Raises:
        UserError: see `find_source`.
    """
    text = config.order != "fast"  # which takes a chat template
    normalisation = Normalisation(config.merge_same_role, config.fold_system)
    if config.mixture is None:
        return find_source(
            config.dataset or default, config.dataset_split, config.dataset_revision, kept,
            config=config.dataset_config, layout=config.dataset_layout, roles=config.roles,
            normalisation=normalisation, text=text,
        )
    there = kept.get("mixture") or {}
    return Mixture(tuple(
        (find_source(part.dataset, part.split, part.revision, there.get(str(number)), config=part.config,
                     layout=part.layout, roles=config.roles, normalisation=normalisation, text=text), part)
        for number, part in enumerate(config.mixture)
    ))
