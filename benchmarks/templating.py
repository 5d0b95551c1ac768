"""Chats through the template: `ChatTemplate.encode`, which types every token, against bare `apply_chat_template`.

    TOKENIZERS_PARALLELISM=false RAYON_NUM_THREADS=1 python -m benchmarks.templating [--chats 400] [--rounds 7]

On one core (the variables are set here too, before the tokenizer loads): the embedded model's tokenizer with the
embedded chats, and the Llama-3-like family of the tests with chats of its own words. The peer is what anybody would
write: ``tokenizer.apply_chat_template(chat, tokenize=True)`` for one conversation after the other. Processor time of
this thread, contenders in turn, the median of the rounds' ratios: above 1 we are faster. The ids are compared first.
"""

import argparse
import os
import time
from collections.abc import Callable, Sequence
from itertools import islice
from statistics import median
from typing import Any

os.environ |= {"TOKENIZERS_PARALLELISM": "false", "RAYON_NUM_THREADS": "1"}

from benchmarks.measuring import median_ratio, save
from harvest import embedded
from harvest.conversation import Conversation, parse_row
from harvest.model import find_model
from harvest.template import ChatTemplate, Encoded
from tests import tiny

VARIABLES = {"date_string": "26 Jul 2024"}
CHUNK = 256
"""Conversations at once, as the plan takes them."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--chats", type=int, default=400)
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args()
    own = [parse_row({"messages": chat}, "own") for chat in tiny.chats(4 * arguments.chats)]
    contests = {
        "embedded model and chats": (
            find_model("smollm2-135m-instruct").tokenizer(), list(islice(embedded.read_chats(), arguments.chats))
        ),
        "llama3-like family, short chats": (
            tiny.make_tokenizer("llama3"), [chat for chat in own if isinstance(chat, Conversation)]
        ),
    }
    figures = {name: contest(name, *given, arguments.rounds) for name, given in contests.items()}
    save("templating", {"chats": arguments.chats, "rounds": arguments.rounds, "contests": figures})


def contest(name: str, tokenizer: Any, chats: Sequence[Conversation], rounds: int) -> dict[str, object]:
    """Processor seconds of both in every round, and how many times as fast ours was."""
    template = ChatTemplate(tokenizer, VARIABLES)

    def ours() -> list[list[int]]:
        return [
            encoded.token_id.tolist() if isinstance(encoded, Encoded) else []
            for start in range(0, len(chats), CHUNK) for encoded in template.encode(chats[start : start + CHUNK])
        ]

    def bare() -> list[list[int]]:
        return [
            tokenizer.apply_chat_template(chat.as_dicts(), tokenize=True, return_dict=False, **VARIABLES)
            for chat in chats
        ]

    expected = bare()
    assert ours() == expected
    tokens = sum(map(len, expected))
    seconds: dict[str, list[float]] = {"bare": [], "ours": []}
    for number in range(rounds):
        for contender, work in (("bare", bare), ("ours", ours)):
            seconds[contender].append(processor_seconds(work))
        print(f"  round {number + 1}  bare {seconds['bare'][-1]:.3f} s  ours {seconds['ours'][-1]:.3f} s", flush=True)
    ratio = median_ratio(seconds["bare"], seconds["ours"])
    print(f"{name}: {len(chats):,} chats, {tokens:,} tokens; ours at {ratio:.2f} of the speed of bare "
          f"apply_chat_template, {tokens / median(seconds['ours']):,.0f} tokens/s a core")
    return {"chats": len(chats), "tokens": tokens, "ratio": ratio, "seconds": seconds,
            "tokens_per_second": {contender: tokens / median(times) for contender, times in seconds.items()}}


def processor_seconds(work: Callable[[], object]) -> float:
    """Processor seconds of this process: what a core takes, whatever else the machine does."""
    started = time.process_time()
    work()
    return time.process_time() - started


if __name__ == "__main__":
    main()
