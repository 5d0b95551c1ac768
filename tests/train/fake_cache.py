"""A cache in memory with the attributes that train reads, over numpy arrays."""

from pathlib import Path
from types import SimpleNamespace

import ml_dtypes
import numpy as np

from shared.format.layout import BLOCK_ROWS
from shared.format.tokens import Role, TokenClass, TokenType


class FakeLayer:
    def __init__(self, x):
        self.x = x.astype(ml_dtypes.bfloat16)
        self.d_model = x.shape[1]
        self.num_bytes = self.x.nbytes
        self.released = []
        self.prefetched = set()

    def __getitem__(self, rows):
        return self.x[rows].copy()

    def block(self, number):
        return self.x[number * BLOCK_ROWS : (number + 1) * BLOCK_ROWS]

    def prefetch(self, blocks):
        self.prefetched.update(blocks)

    def release(self, first, last):
        self.released.append((first, last))

    def norm(self, rows):
        return np.linalg.norm(self.x[rows].astype(np.float32), axis=1)


class FakeCache:
    """Conversations of 40 tokens: first, turn_start, role_name, header_end, then user and assistant text."""

    def __init__(self, x, num_train_rows=None, *, layer=3, rows_per_unit=1024, units=None, sequence=40):
        n, self.d_model = x.shape
        self.num_rows = n
        self.num_train_rows = n if num_train_rows is None else num_train_rows
        self.rows_per_unit = self.rows_per_shard = rows_per_unit
        self.num_units = -(-n // rows_per_unit)
        self.layers = (layer,)
        self.units = tuple(range(self.num_units)) if units is None else tuple(units)
        self._layer = FakeLayer(x)
        self.path, self.name, self.cache_id = Path("caches/fake"), "fake", "f" * 32
        self.identity = {"model": {"name": "org/fake"}, "dataset": {"name": "chats"}, "template": "abc"}
        position = np.arange(n) % sequence
        self.turn = np.where(position < sequence // 2, 0, 1).astype(np.uint16)
        self.role = np.where(self.turn == 0, Role.USER, Role.ASSISTANT).astype(np.uint8)
        self.token_class = np.where(self.turn == 0, TokenClass.USER, TokenClass.ASSISTANT).astype(np.uint8)
        self.token_type = np.full(n, TokenType.CONTENT, np.uint16)
        heads = (TokenClass.FIRST, TokenClass.ROLE_NAME, TokenClass.HEADER_END)
        bits = (TokenType.FIRST | TokenType.TEMPLATE | TokenType.SPECIAL, TokenType.TEMPLATE | TokenType.ROLE_NAME,
                TokenType.TEMPLATE | TokenType.SPECIAL)
        for place, (kind, types) in enumerate(zip(heads, bits, strict=True)):
            self.token_class[position == place] = kind
            self.token_type[position == place] = types
        self.token_id = np.arange(n, dtype=np.int32)
        self.sequence_offset = np.unique(np.append(np.arange(0, n, sequence), n)).astype(np.int64)
        self.conversation_offset = self.sequence_offset

        self.keys = np.arange(len(self.conversation_offset) - 1, dtype=np.uint64)

    def array(self, name):
        assert name == "conversations/key"
        return SimpleNamespace(read=lambda: self.keys)

    def committed_units(self, layer):
        return self.units

    def unit_rows(self, unit):
        return range(unit * self.rows_per_unit, min(self.num_rows, (unit + 1) * self.rows_per_unit))

    def layer(self, layer):
        return self._layer

    def conversation(self, rows):
        return self.sequence(rows)

    def sequence(self, rows):
        return np.searchsorted(self.sequence_offset, rows, side="right").astype(np.int64) - 1

    def position(self, rows):
        return rows - self.sequence_offset[self.sequence(rows)]

    def rows(self, layer=None, split=None, units=None, classes=None, types=None, roles=None):
        assert classes is None
        assert types is None
        assert roles is None
        units = self.units if units is None else [unit for unit in units if unit in self.units]
        rows = np.concatenate([np.arange(r.start, r.stop) for r in map(self.unit_rows, sorted(units))])
        if split == "train":
            rows = rows[rows < self.num_train_rows]
        elif split == "held_out":
            rows = rows[rows >= self.num_train_rows]
        return rows.astype(np.int64)


def planted(num_rows, d_in=32, num_atoms=64, active=3, seed=0):
    """Rows that are sparse combinations of unit atoms, with the atoms: [num_rows, d_in], [num_atoms, d_in]."""
    rng = np.random.default_rng(seed)
    atoms = rng.standard_normal((num_atoms, d_in))
    atoms /= np.linalg.norm(atoms, axis=1, keepdims=True)
    chosen = np.argsort(rng.random((num_rows, num_atoms)), axis=1)[:, :active]
    codes = np.zeros((num_rows, num_atoms))
    np.put_along_axis(codes, chosen, rng.uniform(1.0, 2.0, (num_rows, active)), axis=1)
    return (codes @ atoms).astype(np.float32), atoms.astype(np.float32)
