"""Chats and rows made at random: no forged control token, no unhandled error, and every row accounted for.

    python -m benchmarks.chat_fuzz [--chats 3000] [--rows 20000] [--seed 0]

Chats are made of control tokens of five families, their halves, role names, white space and unicode, and go through
all five templates. A control token is forged if there are more of them than in the same turns with other contents,
or if one is not marked as the template's. Rows are chats with junk in them, and junk. tests/harvest runs both at a
small size.
"""

import argparse
import json
import random
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

import numpy as np

from benchmarks.measuring import save
from harvest.conversation import Conversation, Message, Reason, Skipped
from harvest.opening import start_plan
from harvest.template import ChatTemplate
from shared.format.tokens import TokenType
from tests import tiny

VARIABLES = {"date_string": "26 Jul 2024"}
CONTROL = sorted({word for _, words, _, _ in tiny.FAMILIES.values() for word in words} | {"<think>"})
PIECES = [
    *CONTROL, *(word[: len(word) // 2] for word in CONTROL), *(word[len(word) // 2 :] for word in CONTROL),
    *(word.upper() for word in CONTROL), "user", "assistant", "system\n", "model", "<|", "|>", "<", ">", "[", "]",
    " ", "\n", "\n\n", "\t", "\r\n", "\u00a0", "\u3000", "\u200b", "\u2028", "\u2581", "\x00", "hello there", "fox",
    "e\u0301", "\u1112\u1161\u11ab", "\U0001f469\u200d\U0001f4bb", "\U0001f1e6", "\u05e9\u05dc\u05d5\u05dd", "\u202e",
    "\u0645\u0631\u062d\u0628\u0627", "\uff1cs\uff1e", "\ufeff", "\ufffe", "\U000f0000", "\U000f0001", "\ue000",
    "def f():\n    return 1\n", "{{ 1/0 }}", "{% raw %}", "\\n", "'\"",
]
TOOL = {"type": "function", "function": {"name": "search", "parameters": {}}}


@dataclass
class Found:
    """What became of chats."""

    encoded: int = 0
    skipped: Counter[str] = field(default_factory=Counter)
    forged: int = 0
    errors: list[str] = field(default_factory=list)


def make_chats(number: int, seed: int) -> list[Conversation]:
    """Valid conversations of one to five turns of pieces that may do harm; roles usually alternate."""
    rng = random.Random(seed)
    made = []
    for index in range(number):
        roles = [("user", "assistant")[turn % 2] for turn in range(rng.randint(1, 5))]
        if rng.random() < 0.2:
            roles.insert(0, "system")
        if rng.random() < 0.05:
            roles[rng.randrange(len(roles))] = rng.choice(["system", "assistant", "user", "tool", "critic"])
        messages = [Message(role, "".join(rng.choices(PIECES, k=rng.randint(0, 8)))) for role in roles]
        made.append(Conversation(tuple(messages), f"fuzz:{index}"))
    return made


def fuzz_chats(family: str, chats: Sequence[Conversation]) -> Found:
    """Encode chats through a family's template, and count what must not be."""
    tokenizer = tiny.make_tokenizer(family)
    template = ChatTemplate(tokenizer, VARIABLES)
    control = [tokenizer.convert_tokens_to_ids(word) for word in [*tiny.FAMILIES[family][1], "<think>"]]
    expected: dict[tuple[str, ...], int] = {}
    found = Found()
    for chat in chats:
        roles = tuple(message.role for message in chat.messages)
        try:
            [encoded] = template.encode([chat])
            if roles not in expected:
                [plain] = template.encode([Conversation(tuple(Message(role, "x") for role in roles), "")])
                expected[roles] = -1 if isinstance(plain, Skipped) else int(np.isin(plain.token_id, control).sum())
        except Exception as error:
            found.errors.append(f"{chat.place}: {type(error).__name__}: {error}")
            continue
        if isinstance(encoded, Skipped):
            found.skipped[encoded.reason] += 1
            continue
        found.encoded += 1
        is_control = np.isin(encoded.token_id, control)
        marked = (encoded.token_type & TokenType.SPECIAL) > 0
        found.forged += bool((is_control != marked).any() or is_control.sum() != expected[roles])
    return found


def make_lines(number: int, seed: int) -> list[bytes]:
    """Lines of a JSONL file: chats, chats with junk in them, junk, and what is no JSON."""
    rng = random.Random(seed)
    lines = []
    for _ in range(number):
        row: Any = {"messages": [{"role": ("user", "assistant")[turn % 2], "content": _text(rng)}
                                 for turn in range(rng.randint(1, 4))]}
        kind = rng.random()
        if kind < 0.1:
            row = _junk(rng, 4)
        elif kind < 0.2:
            key = rng.choice(["tools", "images", "image", "functions", "messages", "text", "\ud800"])
            row[key] = _junk(rng, 2)
        elif kind < 0.6:
            message = rng.choice(row["messages"])
            match rng.randrange(7):
                case 0:
                    del message[rng.choice(["role", "content"])]
                case 1:
                    message["role"] = rng.choice(["tool", "human", "User", "", "a b", "us\ud800er", "критик"])
                case 2:
                    message[rng.choice(["role", "content", "tool_calls", "images"])] = _junk(rng, 3)
                case 3:
                    message["content"] += rng.choice(["\ud800", "\udc00x", "\udfff\ud800"])
                case 4:
                    message["content"] = [{"type": rng.choice(["text", "image", "image_url"]), "text": "a"}]
                case 5:
                    row["messages"][rng.randrange(len(row["messages"]))] = _junk(rng, 2)
                case _:
                    message["content"] = "".join(rng.choices(PIECES, k=4))
        data = json.dumps(row, ensure_ascii=rng.random() < 0.7).encode("utf-8", "surrogatepass")
        if kind > 0.97:
            data = data[: rng.randint(1, len(data))]
        lines.append(data.replace(b"\n", b" ") or b"?")
    return lines


def fuzz_rows(lines: Sequence[bytes], folder: Path) -> Counter[str]:
    """Plan a cache of a file of these lines; how many conversations it holds, and how many were skipped for what."""
    data = folder / "rows.jsonl"
    data.write_bytes(b"".join(line + b"\n" for line in lines))
    model = tiny.save_model(folder / "model")
    plan, _, _ = start_plan(tiny.make_job(model, data, max_skipped=1.0, dataset_layout="messages"))
    assert plan.num_read == len(lines), (plan.num_read, len(lines))
    assert {*plan.num_skipped} <= {*get_args(Reason)}, plan.num_skipped
    return Counter({"harvested": plan.num_conversations, **plan.num_skipped})


def _text(rng: random.Random) -> str:
    return " ".join(rng.choices(tiny.WORDS, k=rng.randint(0, 6)))


def _junk(rng: random.Random, depth: int) -> Any:
    kind = rng.randrange(9 if depth else 6)
    if kind == 6:
        return [_junk(rng, depth - 1) for _ in range(rng.randint(0, 3))]
    if kind >= 7:
        keys = ["messages", "role", "content", "tools", "images", "type", "x", ""]
        return {rng.choice(keys): _junk(rng, depth - 1) for _ in range(rng.randint(0, 3))}
    return [None, True, rng.randint(-9, 10**20), rng.choice([0.5, float("nan"), 1e300]), "", rng.choice(PIECES)][kind]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--chats", type=int, default=3000)
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    chats = make_chats(arguments.chats, arguments.seed)
    families = {}
    for family in tiny.FAMILIES:
        found = fuzz_chats(family, chats)
        print(f"{family:8s} {found.encoded:6,} encoded  {found.skipped.total():5,} skipped {dict(found.skipped)}  "
              f"{found.forged} forged, {len(found.errors)} errors {found.errors[:2]}", flush=True)
        families[family] = {"encoded": found.encoded, "skipped": dict(found.skipped), "forged": found.forged,
                            "errors": len(found.errors)}
    with tempfile.TemporaryDirectory() as folder:
        rows = fuzz_rows(make_lines(arguments.rows, arguments.seed), Path(folder))
    print(f"{arguments.rows:,} rows: {rows['harvested']:,} harvested + {rows.total() - rows['harvested']:,} skipped = "
          f"{rows.total():,}; {dict(rows)}")
    save("chat_fuzz", {"chats": arguments.chats, "seed": arguments.seed, "families": families,
                       "rows": arguments.rows, "became": dict(rows)})
    bad = sum(family["forged"] + family["errors"] for family in families.values())
    if bad or rows.total() != arguments.rows:
        raise SystemExit("something was forged, raised or lost")


if __name__ == "__main__":
    main()
