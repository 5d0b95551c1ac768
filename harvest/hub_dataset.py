"""The only door to ``datasets``: data sets of the hub, streamed."""

from collections.abc import Iterator
from typing import Any

import datasets

from harvest.hub import hub_errors
from harvest.layouts import COLUMNS
from shared.errors import DataError, RecipeError


def stream_rows(repo: str, commit: str, split: str, config: str | None = None) -> Iterator[dict[str, Any]]:
    """The rows of one split, without downloading the whole set first; memory does not grow with it.

    Of columns that are known beforehand only those are read that a conversation may be made of.

    Args:
        config: configuration (subset) of the set; None where it has one alone.

    Raises:
        DataError: it has no such split or configuration, or a file of it is damaged.
        RecipeError: it is gated. TryAgainError: the hub cannot be reached.
    """
    with hub_errors(repo, "dataset"):
        try:
            rows = datasets.load_dataset(repo, name=config, revision=commit, split=split, streaming=True)
            wanted = [name for name in rows.column_names or () if name in COLUMNS]
            if wanted:
                rows = rows.select_columns(wanted)
            yield from rows.decode(False)  # pictures and sound are left as they lie: such rows are skipped
        except datasets.exceptions.DatasetNotFoundError as error:
            if "gated" not in str(error):
                raise
            raise RecipeError(f"{repo!r} is gated: accept its licence at huggingface.co/datasets/{repo}, then log in "
                              "with: hf auth login") from None
        except ValueError as error:
            reason = " ".join(str(error).split())[:300].rstrip(".")
            raise DataError(f"Data set {repo!r}, split {split!r}, configuration {config or 'default'!r}: {reason}. "
                            "Others are taken with --set harvest.dataset_split=NAME or "
                            "--set harvest.dataset_config=NAME") from None
