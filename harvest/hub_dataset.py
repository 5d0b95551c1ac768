"""The only door to ``datasets``: data sets of the hub, streamed."""

from collections.abc import Iterator
from typing import Any

import datasets

from harvest.hub import hub_errors
from shared.errors import DataError


def stream_rows(repo: str, commit: str, split: str) -> Iterator[dict[str, Any]]:
    """The rows of one split, without downloading the whole set first."""
    with hub_errors(repo, "dataset"):
        try:
            rows = datasets.load_dataset(repo, revision=commit, split=split, streaming=True)
        except ValueError as error:
            raise DataError(f"Data set {repo!r}, split {split!r}: {str(error)[:300]}") from None
        yield from rows
