"""Token policy: which rows of a cache an SAE is trained on, decided at load time.

One cache serves every policy. The default leaves out position 0 (the attention sink) and rows whose norm
is over ten times the layer's median: a few such rows would otherwise set scale, loss and gradient.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from pydantic import Field, field_validator

from shared.errors import DataError
from shared.format.tokens import Role, TokenClass, TokenType, enum_name
from shared.reading.cache import Cache
from shared.recipe import Table

_CLASSES = {enum_name(member): member for member in TokenClass}
_TYPES = {enum_name(member): member for member in TokenType}
_ROLES = {enum_name(member): member for member in Role}


class TokenPolicy(Table):
    """The table [train.policy]. A row is kept when no ``drop_`` names it and every given ``keep_`` does."""

    keep_classes: tuple[str, ...] = ()
    """Keep only these token classes ("assistant", "turn_end", ...). Empty: all."""
    drop_classes: tuple[str, ...] = ("first",)
    """Drop these token classes."""
    keep_types: tuple[str, ...] = ()
    """Keep only tokens with one of these type bits ("content", "special", ...). Empty: all."""
    drop_types: tuple[str, ...] = ()
    """Drop tokens with one of these type bits."""
    keep_roles: tuple[str, ...] = ()
    """Keep only tokens in turns of these roles ("user", "assistant", ...). Empty: all."""
    drop_roles: tuple[str, ...] = ()
    """Drop tokens in turns of these roles."""
    min_turn: int = Field(default=0, ge=0)
    """First turn to keep, 0-based."""
    max_turn: int | None = Field(default=None, ge=0)
    """Last turn to keep."""
    min_position: int = Field(default=0, ge=0)
    """First position in the sequence to keep, 0-based."""
    max_position: int | None = Field(default=None, ge=0)
    """Last position in the sequence to keep."""
    max_norm: float | None = Field(default=10.0, ge=0)
    """Drop rows whose L2 norm is over this many times the median norm of the layer's training rows. 0: keep them."""

    @field_validator("max_norm")
    @classmethod
    def _no_limit(cls, value: float | None) -> float | None:
        return value or None  # TOML has no null

    @field_validator("keep_classes", "drop_classes")
    @classmethod
    def _known_classes(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        return _known(names, _CLASSES)

    @field_validator("keep_types", "drop_types")
    @classmethod
    def _known_types(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        return _known(names, _TYPES)

    @field_validator("keep_roles", "drop_roles")
    @classmethod
    def _known_roles(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        return _known(names, _ROLES)

    def describe(self) -> str:
        """What differs from keeping everything, on one line: "drop class first; norm <= 10 x median"."""
        parts = [f"{verb} {kind} {' '.join(names)}" for verb, kind, names in (
            ("keep", "class", self.keep_classes), ("drop", "class", self.drop_classes),
            ("keep", "type", self.keep_types), ("drop", "type", self.drop_types),
            ("keep", "role", self.keep_roles), ("drop", "role", self.drop_roles)) if names]
        for name, low, high in (("turn", self.min_turn, self.max_turn),
                                ("position", self.min_position, self.max_position)):
            if low or high is not None:
                parts.append(f"{name} {low} to {'end' if high is None else high}")
        if self.max_norm is not None:
            parts.append(f"norm <= {self.max_norm:g} x median")
        return "; ".join(parts) or "keep all"


def median_norm(cache: Cache, layer: int, units: Sequence[int] | None = None) -> float:
    """Median L2 norm of a layer's finite training rows, all classes.

    Raises:
        DataError: no training rows of this layer are there.
    """
    rows = cache.rows(layer=layer, split="train", units=units)
    if len(rows) == 0:
        raise DataError(f"{cache.path} holds no training rows of layer {layer} yet. Run the harvest further first.")
    return float(np.median(cache.layer(layer).norm(rows)))


def keeps(cache: Cache, layer: int, policy: TokenPolicy, rows: npt.NDArray[np.int64],
          median: float) -> npt.NDArray[np.bool_]:
    """Which of ``rows`` the policy keeps: bool [n]. ``median`` is `median_norm`."""
    classes, types, roles = cache.token_class[rows], cache.token_type[rows], cache.role[rows]
    kept: npt.NDArray[np.bool_] = np.ones(len(rows), dtype=bool)
    if policy.keep_classes:
        kept &= np.isin(classes, [_CLASSES[name] for name in policy.keep_classes])
    if policy.drop_classes:
        kept &= ~np.isin(classes, [_CLASSES[name] for name in policy.drop_classes])
    if policy.keep_types:
        kept &= (types & _bits(policy.keep_types)) != 0
    if policy.drop_types:
        kept &= (types & _bits(policy.drop_types)) == 0
    if policy.keep_roles:
        kept &= np.isin(roles, [_ROLES[name] for name in policy.keep_roles])
    if policy.drop_roles:
        kept &= ~np.isin(roles, [_ROLES[name] for name in policy.drop_roles])
    if policy.min_turn or policy.max_turn is not None:
        kept &= _within(cache.turn[rows], policy.min_turn, policy.max_turn)
    if policy.min_position or policy.max_position is not None:
        kept &= _within(cache.position(rows), policy.min_position, policy.max_position)
    if policy.max_norm is not None:
        kept &= cache.layer(layer).norm(rows) <= policy.max_norm * median
    return kept


def training_mask(cache: Cache, layer: int, policy: TokenPolicy, units: Sequence[int] | None = None,
                  median: float | None = None) -> npt.NDArray[np.bool_]:
    """The rows to train on: bool [num_rows]. Held-out rows are never among them.

    Raises:
        DataError: the policy keeps no row.
    """
    median = median_norm(cache, layer, units) if median is None else median
    rows = cache.rows(layer=layer, split="train", units=units)
    mask: npt.NDArray[np.bool_] = np.zeros(cache.num_rows, dtype=bool)
    mask[rows[keeps(cache, layer, policy, rows, median)]] = True
    if not mask.any():
        raise DataError(f"The token policy ({policy.describe()}) keeps none of the {len(rows):,} training rows of "
                        f"layer {layer} in {cache.path}. Loosen [train.policy].")
    return mask


def only_types(cache: Cache, mask: npt.NDArray[np.bool_], names: tuple[str, ...]) -> npt.NDArray[np.bool_]:
    """Those rows of a mask that have one of these type bits; all of them where none is named.

    A mask that is filled up to whole blocks comes back as [num_rows].
    """
    mask = mask[: cache.num_rows]
    return mask & ((cache.token_type & _bits(names)) != 0) if names else mask


def known_types(names: tuple[str, ...]) -> tuple[str, ...]:
    """The names, if all are names of `TokenType` bits.

    Raises:
        ValueError: one is not.
    """
    return _known(names, _TYPES)


def _known(names: tuple[str, ...], known: "dict[str, TokenClass] | dict[str, TokenType] | dict[str, Role]",
           ) -> tuple[str, ...]:
    for name in names:
        if name not in known:
            raise ValueError(f"must be among {', '.join(known)}")
    return names


def _bits(names: tuple[str, ...]) -> np.uint16:
    bits = 0
    for name in names:
        bits |= _TYPES[name]
    return np.uint16(bits)


def _within(values: npt.NDArray[np.generic], low: int, high: int | None) -> npt.NDArray[np.bool_]:
    inside: npt.NDArray[np.bool_] = values >= low  # type: ignore[operator]
    return inside if high is None else inside & (values <= high)  # type: ignore[operator]
