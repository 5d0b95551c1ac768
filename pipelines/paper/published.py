"""The paper's published figures: log2 of eq. 7's MSE for each model, layer, expansion, method and architecture."""

import csv
from dataclasses import dataclass
from pathlib import Path

FIGURES = Path(__file__).with_name("log2_mse.csv")

ARCHITECTURES = ("standard", "jumprelu")
"""Those the paper trains, as we call them."""

METHODS = ("BT(P)", "BT(F)", "FAST")
"""Block training on pretraining text, on the chats, and one conversation at a time; in the paper's order."""


@dataclass(frozen=True, order=True)
class Cell:
    """A row of the paper's tables: two SAEs, one of each architecture."""

    model: str
    """The last part of its hub id: "Llama-3.1-8B-Instruct"."""
    layer: int
    expansion: float
    method: str


@dataclass(frozen=True)
class Published:
    """What the paper gives of one SAE, both log2."""

    log2_mse: float
    """Of all tokens (eq. 7: mean over sequences of per-sequence means)."""
    log2_mse_st: float
    """Of special tokens alone, position 0 among them."""


def read_published() -> dict[tuple[Cell, str], Published]:
    """The published figures by cell and architecture, in the paper's order."""
    with FIGURES.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(line for line in file if not line.startswith("#")))
    found = {}
    for row in rows:
        cell = Cell(row["model"], int(row["layer"]), float(row["expansion"]), row["method"])
        for architecture in ARCHITECTURES:
            found[cell, architecture] = Published(float(row[f"{architecture}_log2_mse"]),
                                                  float(row[f"{architecture}_log2_mse_st"]))
    return found
