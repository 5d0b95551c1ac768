"""Data sets of the hub by the name a user types: the FAST paper's five, and what its baseline BT(P) reads.

Anything else works too: a hub id "org/name" or local files. Revisions are not listed here: a hub data set's
revision is resolved to a commit at first use and kept in the cache's plan.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class KnownDataset:
    """A known data set of the hub."""

    repo: str
    licence: str
    """What its page says; a note for people, nothing follows from it."""
    layout: str | None
    """How a row holds its conversation, of `harvest.layouts.LAYOUTS`; None: as its first row says."""
    config: str | None = None
    """Its configuration (subset), where it has several."""
    gated: bool = False
    """Whether its conditions must be accepted, once, before it can be read."""


# From the sets' own pages as they were quoted elsewhere in 2024 to 2026; none could be opened from where this table
# was written. Rows: 990 k, 7,449,106, 939,343, 1,046,410 and 1,000,000, in all the paper's 11,425,231: so its
# Infinity-Instruct is the configuration 7M.
# Not checked: that the layout of wildchat-1m-full is the one of WildChat-1M (its page shows it only to those who
# were let in); that 7M holds from/value as its other configurations do; the layout that
# orca-agentinstruct-1M-v1-cleaned has today (a set made from it has a list, the set it was made from has JSON).
KNOWN_DATASETS: dict[str, KnownDataset] = {
    "wildchat-1m-full": KnownDataset(
        "allenai/WildChat-1M-Full", "ODC-BY; access is asked for with a reason", "conversation", gated=True
    ),
    "infinity-instruct": KnownDataset("BAAI/Infinity-Instruct", "CC-BY-SA-4.0", "conversations", "7M", gated=True),
    "tulu-3-sft-mixture": KnownDataset("allenai/tulu-3-sft-mixture", "ODC-BY, parts non-commercial", "messages"),
    "orca-agentinstruct-1m-v1-cleaned": KnownDataset(
        "mlabonne/orca-agentinstruct-1M-v1-cleaned", "CDLA-Permissive-2.0", None
    ),
    "lmsys-chat-1m": KnownDataset(
        "lmsys/lmsys-chat-1m", "LMSYS-Chat-1M licence agreement", "conversation", gated=True
    ),
    "pile-uncopyrighted": KnownDataset("monology/pile-uncopyrighted", "other: see its page", "text"),
}
