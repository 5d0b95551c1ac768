"""What is compared: evaluated SAEs and baselines, with their sums by conversation in one common order."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pipelines.loss.files import EVAL_LOSS, read_loss_sums
from pipelines.runs import Evaluated, FinishedRun, read_evaluated
from shared.errors import CorruptError, DataError, IdentityError, RecipeError
from train.evaluation.files import EVAL, EVAL_CONVERSATIONS, FORMAT_VERSION
from train.evaluation.foreign import FOREIGN
from train.evaluation.paired import ConversationSums, pairing, read_conversations
from train.export.exported import RUN


@dataclass(frozen=True)
class Member:
    """One SAE, or baseline, of a comparison."""

    folder: Path
    run: Evaluated
    sums: ConversationSums
    loss: ConversationSums | None = None
    """Sums of the language model's loss, where it was measured."""
    loss_figures: dict[str, dict[str, Any]] | None = None
    """Figures of eval_loss.json by subset: "conversations:assistant"."""

    @property
    def record(self) -> dict[str, Any]:
        """run.json or foreign.json; nothing of a baseline."""
        return self.run.record if isinstance(self.run, FinishedRun) else {}

    @property
    def cache_id(self) -> str:
        """Of the cache that it was trained and measured on."""
        return str(self.run.evaluation["cache_id"])

    @property
    def d_in(self) -> int:
        """Width of the activations."""
        return int(self.run.evaluation["d_in"])

    def figures(self, subset: str) -> dict[str, Any]:
        """What eval.json or eval_loss.json says of a subset; nothing where it has none."""
        found = self.run.evaluation["subsets"].get(subset) or (self.loss_figures or {}).get(subset) or {}
        return dict(found)

    def figure(self, subset: str, metric: str) -> float | None:
        """One of them, None where it is not defined."""
        value = self.figures(subset).get(metric)
        return None if value is None else float(value)


def read_members(folders: Sequence[Path]) -> tuple[list[Member], list[str]]:
    """Read what is compared, in the order given, with the conversations in the order of the first.

    Args:
        folders: of an SAE or a baseline, or of a layer, which stands for all SAEs in it.

    Returns:
        The members, and what is to be said about them: a sentence each.

    Raises:
        RecipeError: fewer than two, one twice, or a folder that is none. DataError: one is not evaluated.
        IdentityError: they are of different layers, or measured on different conversations or rows.
        CorruptError, StorageError: a file is damaged or cannot be read.
    """
    folders = [inner for folder in folders for inner in _saes_in(folder)]
    if len(folders) < 2:
        raise RecipeError(f"Nothing to compare: expected two SAEs or more, got {len(folders)}. For example: "
                          "python -m pipelines compare runs/demo/layer9 --out comparison")
    for number, folder in enumerate(folders):
        if folder.resolve() in {other.resolve() for other in folders[:number]}:
            raise RecipeError(f"{folder} is given twice. Give each SAE once: several seeds make one set by themselves.")
    members = [_read(folder) for folder in folders]
    first = members[0]
    for other in members[1:]:
        _check_alike(first, other)
    return _in_one_order(members)


def _saes_in(folder: Path) -> list[Path]:
    """The folder of an SAE or a baseline itself; those of all SAEs of a layer's folder, by name."""
    known = (RUN, FOREIGN, EVAL)
    if any((folder / name).is_file() for name in known):
        return [folder]
    inside = sorted({path.parent for name in (RUN, FOREIGN) for path in folder.glob(f"*/{name}")})
    if not inside:
        raise RecipeError(f"{folder} is no SAE: there is none of {', '.join(known)} in it. Expected the folder of one, "
                          "runs/<cache>/layer<L>/<sae name>, or that of a layer with all SAEs in it.")
    return inside


def _read(folder: Path) -> Member:
    run = read_evaluated(folder)
    evaluation = run.evaluation
    if evaluation.get("format_version") != FORMAT_VERSION or not (folder / EVAL_CONVERSATIONS).is_file():
        raise DataError(f"{folder} was evaluated by another version: it has no sums by conversation of version "
                        f"{FORMAT_VERSION}. Evaluate it again: python -m pipelines evaluate --layer "
                        f"{evaluation.get('layer')} --cache {evaluation.get('cache')}")
    sums = read_conversations(folder)
    _check_sums(folder / EVAL_CONVERSATIONS, sums, evaluation)
    if run.loss is None:
        return Member(folder, run, sums)
    figures = {f"{stream}:{scope}": found for stream, scopes in run.loss["streams"].items()
               for scope, found in scopes.items()}
    return Member(folder, run, sums, read_loss_sums(folder), figures)


def _check_sums(path: Path, sums: ConversationSums, evaluation: dict[str, Any]) -> None:
    """Compare the sums by conversation with eval.json: both must be of one evaluation."""
    rows, errors = sums.total("n"), sums.total("squared_error")
    for subset in sums.subsets:
        figures = evaluation["subsets"].get(subset, {})
        mse = errors[subset] / max(1.0, rows[subset]) / evaluation["d_in"]
        if rows[subset] != figures.get("num_rows") or not math.isclose(mse, figures["mse"], rel_tol=1e-9, abs_tol=0):
            raise CorruptError(f"{path} does not belong to the eval.json beside it: of {subset} it has "
                               f"{rows[subset]:,.0f} rows and mse {mse:.6g}, and that {figures.get('num_rows')} rows "
                               f"and {figures.get('mse')}. Evaluate it again: python -m pipelines evaluate")


def _check_alike(first: Member, other: Member) -> None:
    here, there = first.run.evaluation, other.run.evaluation
    if here["layer"] != there["layer"]:
        raise IdentityError(f"{first.folder} is of layer {here['layer']} and {other.folder} of layer {there['layer']}: "
                            "their activations are different ones. Compare SAEs of one layer.")
    if here["d_in"] != there["d_in"]:
        raise IdentityError(f"{first.folder} takes activations of width {here['d_in']:,} and {other.folder} of width "
                            f"{there['d_in']:,}: they are of different models. Compare SAEs of one model.")
    if first.cache_id == other.cache_id and here["num_rows"] != there["num_rows"]:
        raise IdentityError(f"{first.folder} was measured on {here['num_rows']:,} held-out rows and {other.folder} on "
                            f"{there['num_rows']:,}: the cache has grown in between. Evaluate all again: "
                            f"python -m pipelines evaluate --layer {here['layer']} --cache {here['cache']}")


def _in_one_order(members: Sequence[Member]) -> tuple[list[Member], list[str]]:
    """Bring all conversations into the order of the first; the loss is left out where its conversations differ."""
    first, notes, ordered = members[0], [], []
    for member in members:
        places = pairing(member.sums.keys, first.sums.keys)
        if places is None:
            here, there = set(first.sums.keys.tolist()), set(member.sums.keys.tolist())
            raise IdentityError(
                f"{first.folder} and {member.folder} were measured on different held-out conversations: "
                f"{len(first.sums.keys):,} and {len(member.sums.keys):,}, of which {len(here & there):,} are the same. "
                "Compare SAEs of caches that hold out the same ones: of the same data, held-out rule and "
                "num_tokens.")
        ordered.append(replace(member, sums=member.sums.ordered(places)))
    measured = [member for member in ordered if member.loss is not None]
    if measured and len(measured) < len(ordered):
        without = next(member for member in ordered if member.loss is None)
        notes.append(f"The language model's loss is known of {len(measured)} of {len(ordered)} SAEs: {without.folder}, "
                     f"for one, has no {EVAL_LOSS}.")
    reference = measured[0].loss if measured else None
    for number, member in enumerate(ordered):
        if member.loss is not None and reference is not None:
            places = pairing(member.loss.keys, reference.keys)
            if places is None:
                notes.append(f"The language model's loss of {member.folder} was measured on other conversations than "
                             f"that of {measured[0].folder}, and is left out.")
            ordered[number] = replace(member, loss=None if places is None else member.loss.ordered(places),
                                      loss_figures=None if places is None else member.loss_figures)
    return ordered, notes
