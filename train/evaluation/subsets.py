"""The subsets of rows that are reported, as unions of groups of rows that are never split."""

from dataclasses import dataclass

import numpy as np

from shared.format.tokens import CONTENT_CLASSES, Role, TokenClass, TokenType, enum_name
from shared.reading.cache import Cache
from train.evaluation.metrics import Bools, Ints

HEADLINE = "content"

TURNS = {"0": 0, "1": 1, "2": 2, "3": 3, "4-7": 4, "8+": 8}
"""Ranges of turns by name, each with its first."""

POSITIONS = {"0": 0, "1-15": 1, "16-63": 16, "64-255": 64, "256-1023": 256, "1024+": 1024}
"""Ranges of positions in the conversation by name, each with its first: in the order "fast" those in the sequence."""

_NOT_PAIRED = ("all", "role:", "turn:", "special_and_bos")


@dataclass(frozen=True)
class Groups:
    """Groups of rows that are alike in everything that a subset asks for. Arrays [groups]."""

    token_class: Ints
    role: Ints
    turn: Ints
    """Number of the range in `TURNS`."""
    position: Ints
    """Number of the range in `POSITIONS`."""
    special: Bools
    bos: Bools
    policy: Bools

    def subsets(self) -> dict[str, Bools]:
        """The groups of each subset that has rows, by the subset's name (docs/metrics.md)."""
        everything = np.ones(len(self.role), dtype=bool)
        # Position 0 may hold nearly all of the variance: where it is not named, it is in no pooled figure.
        without_first = self.token_class != TokenClass.FIRST
        named: dict[str, Bools] = {
            "all": everything,
            "all_without_first": without_first,
            "policy": self.policy,
            "content": np.isin(self.token_class, CONTENT_CLASSES),
            "special": self.special,
            "special_without_first": self.special & without_first,
            "special_and_bos": self.special | self.bos,
            "special_and_bos_without_first": (self.special | self.bos) & without_first,
        }
        for member in TokenClass:
            named[f"class:{enum_name(member)}"] = self.token_class == member
        for role in Role:
            named[f"role:{enum_name(role)}"] = (self.role == role) & without_first
        for number, name in enumerate(TURNS):
            named[f"turn:{name}"] = (self.turn == number) & without_first
        for number, name in enumerate(POSITIONS):
            named[f"position:{name}"] = (self.position == number) & (without_first if number else everything)
        return {name: groups for name, groups in named.items() if groups.any()}


def is_paired(subset: str) -> bool:
    """Whether the sums of each conversation are kept of this subset, for paired comparisons."""
    return subset == "all_without_first" or not subset.startswith(_NOT_PAIRED)


def group_rows(cache: Cache, rows: Ints, policy: Bools) -> tuple[Groups, Ints]:
    """The groups of ``rows`` [n] and each row's group [n]. ``policy``: which of them the policy keeps, [n].

    Special tokens are the paper's (design 4): control tokens of the template, or a role name of user or
    assistant; without BOS.
    """
    types, roles = cache.token_type[rows], cache.role[rows]
    role_name = ((types & TokenType.ROLE_NAME) != 0) & np.isin(roles, [Role.USER, Role.ASSISTANT])
    bos = (types & TokenType.BOS) != 0
    special = (((types & TokenType.SPECIAL) != 0) | role_name) & ~bos
    position = rows - cache.conversation_offset[cache.conversation(rows)]
    columns = np.stack([cache.token_class[rows], roles, _range(TURNS, cache.turn[rows]), _range(POSITIONS, position),
                        special, bos, policy]).astype(np.int64)
    code = np.ravel_multi_index(tuple(columns), (256, 256, len(TURNS), len(POSITIONS), 2, 2, 2))
    _, first, group = np.unique(code, return_index=True, return_inverse=True)
    token_class, role, turn, place, *flags = columns[:, first]
    return Groups(token_class, role, turn, place, *(flag.astype(bool) for flag in flags)), group.astype(np.int64)


def _range(ranges: dict[str, int], values: Ints) -> Ints:
    return np.searchsorted(list(ranges.values()), values, side="right").astype(np.int64) - 1
