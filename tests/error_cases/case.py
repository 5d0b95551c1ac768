"""What a case is, and what several of them use."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

from train.config import plan_saes, read_train_config, sae_tables

ONE_SAE = {"train": {"batch_size": 64, "num_tokens": 640}, "sae": [{"d_sae": 32, "k": 3}]}


@dataclass(frozen=True)
class Case:
    """A way to cause an error."""

    code: int
    """The exit code."""
    cause: Callable[[SimpleNamespace], object]
    says: tuple[str, ...]
    """What the message quotes: the wrong value, or the place."""
    then: str
    """What it says to do, or what was expected."""

    @property
    def name(self):
        return self.cause.__name__


CASES: list[Case] = []


def case(code, *says, then):
    """Add the function below to the cases."""
    def note(cause):
        CASES.append(Case(code, cause, says, then))
        return cause

    return note


def damage(path: Path, place: int = 100) -> None:
    """Flip a bit of a file."""
    path.chmod(0o644)
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)


def saes(recipe):
    """The SAEs that a recipe plans."""
    return plan_saes(sae_tables(recipe, None), read_train_config(recipe), 3, 24)
