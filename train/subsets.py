"""The subsets of rows that are reported, as unions of groups of rows that are never split."""

from dataclasses import dataclass

import numpy as np

from shared.format.tokens import CONTENT_CLASSES, Role, TokenClass, TokenType, enum_name
from shared.reading.cache import Cache
from train.metrics import Bools, Ints

HEADLINE = "content"


@dataclass(frozen=True)
class Groups:
    """Groups of rows with the same class, role, and membership in "special" and "policy". Arrays [groups]."""

    token_class: Ints
    role: Ints
    special: Bools
    policy: Bools

    def subsets(self) -> dict[str, Bools]:
        """The groups of each subset that has rows, by the subset's name."""
        everything = np.ones(len(self.role), dtype=bool)
        without_first = self.token_class != TokenClass.FIRST
        named: dict[str, Bools] = {
            "all": everything,
            "all_without_first": without_first,
            "policy": self.policy,
            "content": np.isin(self.token_class, CONTENT_CLASSES),
            "special": self.special,
            "special_without_first": self.special & without_first,
        }
        for member in TokenClass:
            named[f"class:{enum_name(member)}"] = self.token_class == member
        for role in Role:
            named[f"role:{enum_name(role)}"] = self.role == role
        return {name: groups for name, groups in named.items() if groups.any()}


def group_rows(cache: Cache, rows: Ints, policy: Bools) -> tuple[Groups, Ints]:
    """The groups of ``rows`` [n] and each row's group [n]. ``policy``: which of them the policy keeps, [n].

    Special tokens are the paper's (design 4): control tokens of the template, or a role name of user or
    assistant; without BOS.
    """
    types, roles = cache.token_type[rows], cache.role[rows]
    role_name = ((types & TokenType.ROLE_NAME) != 0) & np.isin(roles, [Role.USER, Role.ASSISTANT])
    special = (((types & TokenType.SPECIAL) != 0) | role_name) & ((types & TokenType.BOS) == 0)
    code = ((cache.token_class[rows].astype(np.int64) * 256 + roles) * 2 + special) * 2 + policy
    codes, group = np.unique(code, return_inverse=True)
    return Groups(codes // 1024, codes // 4 % 256, codes // 2 % 2 == 1, codes % 2 == 1), group.astype(np.int64)
