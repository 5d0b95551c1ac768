"""Where conversations come from: the embedded chats, local files, a data set of the hub."""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from harvest import embedded
from harvest.conversation import ROLES, Conversation, Skipped, parse_row
from harvest.data_files import EXPECTED, Row, files_digest, find_files, kind_of, read_file
from harvest.hub import kept_commit, resolve_commit
from harvest.known_datasets import KNOWN_DATASETS, KnownDataset
from harvest.layouts import LAYOUTS, TEXT, detect_layout
from harvest.normalise import AS_IT_IS, Normalisation, normalise
from shared.errors import DataError, RecipeError

EMBEDDED = "chitchat"
EMBEDDED_TEXT = "python-library"


NOT_MALFORMED = ("duplicate", "other_side")
"""Reasons of rows that are left out and nothing is wrong with."""


@dataclass(frozen=True)
class Source:
    """A resolved data set: its name, and what of it goes into the cache's identity."""

    name: str
    identity: dict[str, Any]
    files: tuple[Path, ...] = ()
    """Local files, in order."""
    layout: str | None = None
    """How a row holds its conversation, of `harvest.layouts.LAYOUTS`; None: as the first row says that fits one."""
    roles: Collection[str] = ROLES
    normalisation: Normalisation = AS_IT_IS
    takes_text: bool = False
    """Whether plain text will do."""

    @property
    def names(self) -> list[str]:
        """The names that ``conversations/source`` numbers."""
        return [self.name]

    def holds_text(self) -> bool:
        """Whether it holds plain text; its first row is read where nothing else says.

        Raises:
            UserError: it cannot be read.
        """
        if self.layout is None and not self._is(EMBEDDED):
            first = next((row for _, row in self.rows() if not isinstance(row, Skipped)), None)
            return detect_layout(first) == TEXT
        return self.layout == TEXT

    def _is(self, name: str) -> bool:
        return self.name == name and not self.files

    def read(self) -> Iterator[Conversation | Skipped]:
        """Conversations in the order of the source, normalised; a malformed row is `Skipped` with its reason.

        Raises:
            DataError: the rows hold plain text, or a file is damaged.
        """
        for row in self._parsed():
            yield row if isinstance(row, Skipped) else normalise(row, self.normalisation)

    def _parsed(self) -> Iterator[Conversation | Skipped]:
        if self._is(EMBEDDED) or self._is(EMBEDDED_TEXT):
            yield from embedded.read_chats() if self.name == EMBEDDED else embedded.read_texts()
            return
        layout = self.layout
        for place, row in self.rows():
            if isinstance(row, Skipped):
                yield row
                continue
            layout = layout or detect_layout(row)
            if layout == TEXT and not self.takes_text:
                raise DataError(f"{self.name} holds plain text ({place}), not conversations. Expected rows like "
                                f"{LAYOUTS['messages'].example}; if they stand in another column, name their layout: "
                                "--set harvest.dataset_layout=prompt-response")
            yield parse_row(row, place, layout or "messages", self.roles)

    def rows(self) -> Iterator[Row]:
        """The rows of files or of a hub data set as they are, each with its place."""
        for path in self.files:
            yield from read_file(path)
        if not self.files:
            from harvest.hub_dataset import stream_rows

            known = self.identity
            rows = stream_rows(self.name, known["revision"], known["split"], known.get("config"))
            for number, row in enumerate(rows):
                yield f"{self.name}:{number}", row


def find_source(
    name: str, split: str = "train", revision: str | None = None, kept: Mapping[str, Any] | None = None, *,
    config: str | None = None, layout: str | None = None, roles: Collection[str] = ROLES,
    normalisation: Normalisation = AS_IT_IS, text: bool = False,
) -> Source:
    """Resolve a data set by alias, path, pattern or hub id; a hub data set's revision becomes a commit.

    Args:
        kept: name and revision in the plan that is there; taken where ``revision`` is None and the name is the same.
        config: configuration (subset) of a hub data set; None: the alias's, or the only one.
        layout: of `harvest.layouts.LAYOUTS`; None: the alias's, or as the first row says.
        text: whether plain text will do, which has no turns and goes through no chat template.

    Raises:
        RecipeError: no such file or data set, or one of plain text.
        TryAgainError: the hub cannot be reached.
    """
    named = {"layout": layout} if layout else {}
    if name == EMBEDDED:
        fingerprint = embedded.chat_fingerprint()
        return Source(name, {"name": name, "sha256": fingerprint, "min_turns": embedded.MIN_TURNS}, roles=roles,
                      normalisation=normalisation)
    if name == EMBEDDED_TEXT and text:
        return Source(name, {"name": name, "sha256": embedded.text_fingerprint()}, layout=TEXT, takes_text=True)
    known = KNOWN_DATASETS.get(name)
    files = find_files(name) if known is None else None
    layout = layout or (known.layout if known else None)
    if files and all(kind_of(path) == "text" for path in files):
        layout = TEXT
    if (layout == TEXT or name == EMBEDDED_TEXT) and not text:
        raise RecipeError(f"{name!r} is plain text: it has no turns for a chat template. Expected conversations, "
                          f"for example --dataset my.jsonl with lines of {LAYOUTS['messages'].example}; or train on "
                          "blocks of text: --set harvest.order=block")
    if files:
        # Text files are text by their ending alone, which their bytes do not tell.
        named = {"layout": layout} if layout == TEXT else named
        title = files[0].name if len(files) == 1 else (Path(name).name or Path(name).resolve().name)
        return Source(title, {"name": title, "xxh3": files_digest(files), **named}, files, layout, roles,
                      normalisation, text)
    found = _hub_source(name, known, split, revision, kept, config, layout, named, roles)
    return replace(found, normalisation=normalisation, takes_text=text)


def _hub_source(
    name: str, known: KnownDataset | None, split: str, revision: str | None, kept: Mapping[str, Any] | None,
    config: str | None, layout: str | None, named: dict[str, str], roles: Collection[str],
) -> Source:
    repo = known.repo if known else name
    if repo.count("/") != 1 or kind_of(Path(name)) or name.startswith((".", "/")):
        aliases = ", ".join([EMBEDDED, EMBEDDED_TEXT, *KNOWN_DATASETS])
        raise RecipeError(f"There is no data file {name!r}. Expected a JSONL file (or a folder or pattern of files of "
                          f"{EXPECTED}), a hub id org/name, or: {aliases}.")
    commit = kept_commit(repo, revision, kept) or resolve_commit(repo, revision, "dataset")
    config = config or (known.config if known else None)
    subset = {"config": config} if config else {}
    return Source(repo, {"name": repo, "revision": commit, "split": split, **subset, **named}, (), layout, roles)


def check_skipped(num_read: int, skipped: dict[str, int], examples: list[Skipped], max_share: float) -> None:
    """Stop when too many rows are malformed, or none is left.

    Raises:
        DataError: with the reasons, and the first rows that were skipped.
    """
    total = sum(number for reason, number in skipped.items() if reason not in NOT_MALFORMED)
    examples = [skip for skip in examples if skip.reason not in NOT_MALFORMED]
    shown = "; ".join(f"{skip.place}: {skip.reason} ({skip.detail})" for skip in examples[:3])
    if num_read == 0:
        raise DataError("The data set is empty. Expected rows with messages (role, content).")
    if total == num_read:
        raise DataError(f"All {num_read:,} rows are malformed, nothing can be harvested. {shown}. Expected rows of "
                        f"{LAYOUTS['messages'].example}, or of another layout: --set harvest.dataset_layout=NAME with "
                        f"one of {', '.join(LAYOUTS)}")
    if total > max_share * num_read:
        raise DataError(
            f"{total:,} of {num_read:,} rows are malformed ({total / num_read:.1%}, at most {max_share:.1%} allowed). "
            f"{shown}. Mend them, or allow more: --set harvest.max_skipped=0.1"
        )
