"""Builders: tiny random models with real tokenizers and chat templates, chats, and caches made of them.

The templates are our own texts in the manner of five families; what matters is where they put control
tokens, role names, white space and default prompts.
"""

import json
import random
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

from harvest.config import HarvestConfig
from harvest.conversation import Conversation, Message
from harvest.device import find_device
from harvest.job import Job, prepare
from harvest.opening import open_plan
from harvest.run import harvest
from shared.reading.cache import Cache

DEFAULT_SYSTEM = "You are Pebble, a helper who answers in short lines."

CHATML = """
{%- for message in messages %}
    {%- if loop.first and message.role != "system" %}
        {{- "<|im_start|>system\\n""" + DEFAULT_SYSTEM + """<|im_end|>\\n" }}
    {%- endif %}
    {{- "<|im_start|>" + message.role + "\\n" + message.content + "<|im_end|>\\n" }}
{%- endfor %}
"""

LLAMA3 = """
{%- if not date_string is defined %}{%- set date_string = strftime_now("%d %b %Y") %}{%- endif %}
{%- set system = "" %}
{%- if messages[0].role == "system" %}
    {%- set system = messages[0].content | trim %}
    {%- set messages = messages[1:] %}
{%- endif %}
{{- bos_token + "<|start_header_id|>system<|end_header_id|>\\n\\nThe day is: " + date_string + "\\n\\n" }}
{{- system + "<|eot_id|>" }}
{%- for message in messages %}
    {{- "<|start_header_id|>" + message.role + "<|end_header_id|>\\n\\n" + message.content | trim + "<|eot_id|>" }}
{%- endfor %}
"""

QWEN_SYSTEM = "You are Flint, made by nobody. You are a helpful assistant."

QWEN = """
{%- if messages[0].role == "system" %}
    {{- "<|im_start|>system\\n" + messages[0].content + "<|im_end|>\\n" }}
{%- else %}
    {{- "<|im_start|>system\\n""" + QWEN_SYSTEM + """<|im_end|>\\n" }}
{%- endif %}
{%- for message in messages %}
    {%- if message.role != "system" or not loop.first %}
        {{- "<|im_start|>" + message.role + "\\n" + message.content + "<|im_end|>" + "\\n" }}
    {%- endif %}
{%- endfor %}
"""

GEMMA = """
{{- bos_token }}
{%- for message in messages %}
    {%- if message.role == "system" %}{{- raise_exception("No system turns here") }}{%- endif %}
    {%- set role = "model" if message.role == "assistant" else message.role %}
    {{- "<start_of_turn>" + role + "\\n" + message.content | trim + "<end_of_turn>\\n" }}
{%- endfor %}
"""

MISTRAL = """
{{- bos_token }}
{%- for message in messages %}
    {%- if (message.role == "user") != (loop.index0 % 2 == 0) %}
        {{- raise_exception("User and assistant must take turns") }}
    {%- endif %}
    {%- if message.role == "user" %}
        {{- "[INST] " + message.content + "[/INST]" }}
    {%- else %}
        {{- " " + message.content + eos_token }}
    {%- endif %}
{%- endfor %}
"""

BASE = "{%- for message in messages %}{{- message.content }}{%- endfor %}"
"""A template that adds nothing."""

FAMILIES: dict[str, tuple[str, list[str], str | None, str]] = {
    "chatml": (CHATML, ["<|im_start|>", "<|im_end|>"], "<|im_start|>", "<|im_end|>"),
    "llama3": (
        LLAMA3,
        ["<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|end_of_text|>"],
        "<|begin_of_text|>",
        "<|eot_id|>",
    ),
    "qwen": (QWEN, ["<|endoftext|>", "<|im_start|>", "<|im_end|>"], None, "<|im_end|>"),
    "gemma": (GEMMA, ["<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>"], "<bos>", "<eos>"),
    "mistral": (MISTRAL, ["<s>", "</s>", "[INST]", "[/INST]"], "<s>", "</s>"),
}
"""Template, control tokens, bos (Qwen has none) and eos of each family."""

_CORPUS = [
    "hello there, how are you today? I am fine, thank you. What is the weather like?",
    "The quick brown fox jumps over the lazy dog.\n\nThe dog sleeps.\n\n\nAgain.\n  indented\n  more\n   much",
    "You are Pebble, a helper who answers in short lines. user assistant system model",
    "def add(a, b):\n    return a + b\n\n    print(add(1, 2))\n",
    "The day is: 26 Jul 2024. Naïve café über straße. 1234567890 10 20 30.",
    "think about it <think> well </think> then say it",
] * 3

WORDS = ["hello", "there", "how", "are", "you", "fine", "thank", "weather", "quick", "fox", "dog", "one", "café"]


def make_tokenizer(family: str) -> PreTrainedTokenizerFast:
    """A real fast tokenizer: byte-level BPE ("qwen": of NFC), for "mistral" one in the manner of SentencePiece.

    ``<think>`` is an added token that is not special, as in reasoning models.
    """
    template, control, bos, eos = FAMILIES[family]
    backend = _metaspace_bpe(control) if family == "mistral" else _byte_level_bpe(control)
    if family == "qwen":
        backend.normalizer = normalizers.NFC()
    backend.add_tokens([AddedToken("<think>", special=False, normalized=False)])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token=bos, eos_token=eos, pad_token=eos, clean_up_tokenization_spaces=False
    )
    tokenizer.chat_template = template
    return tokenizer


def _byte_level_bpe(control: list[str]) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=440, special_tokens=control, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(_CORPUS, trainer)
    return tokenizer


def _metaspace_bpe(control: list[str]) -> Tokenizer:
    trained = Tokenizer(models.BPE(unk_token="<unk>"))
    trained.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    trained.train_from_iterator(_CORPUS, trainers.BpeTrainer(vocab_size=160, show_progress=False))
    bpe = json.loads(trained.to_str())["model"]
    bytes_ = [f"<0x{byte:02X}>" for byte in range(256)]
    words = dict.fromkeys(["<unk>", *control, *bytes_, *sorted(bpe["vocab"], key=bpe["vocab"].get)])
    merges = [tuple(merge) if isinstance(merge, list) else tuple(merge.split(" ")) for merge in bpe["merges"]]
    vocab = {word: number for number, word in enumerate(words)}
    tokenizer = Tokenizer(models.BPE(vocab, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.add_special_tokens(["<unk>", *control])
    return tokenizer


def save_model(folder: Path, kind: str = "llama", family: str | None = None, d_model: int = 32) -> Path:
    """Save a tiny random model with its tokenizer; "llama" speaks the Llama-3 template, "qwen2" ChatML."""
    tokenizer = make_tokenizer(family or {"llama": "llama3", "qwen2": "chatml"}[kind])
    sizes = {
        "vocab_size": len(tokenizer),
        "hidden_size": d_model,
        "intermediate_size": 2 * d_model,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 4096,
        "initializer_range": 0.2,  # large enough that tokens matter to each other
    }
    config, model = {
        "llama": (LlamaConfig, LlamaForCausalLM), "qwen2": (Qwen2Config, Qwen2ForCausalLM)
    }[kind]
    torch.manual_seed(0)
    network = model(config(**sizes))
    for name, parameter in network.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter, std=0.2)
    network.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def chats(number: int, seed: int = 0, system: bool = True) -> list[list[dict[str, str]]]:
    """Ordinary conversations of two to six turns and one to sixteen words a turn; every third has a system prompt."""
    rng = random.Random(seed)

    def text() -> str:
        return " ".join(rng.choices(WORDS, k=rng.randint(1, 16)))

    made = []
    for index in range(number):
        turns = [{"role": ("user", "assistant")[turn % 2], "content": text()} for turn in range(rng.randint(2, 6))]
        made.append([{"role": "system", "content": text()}, *turns] if system and index % 3 == 0 else turns)
    return made


def conversation(*turns: tuple[str, str]) -> Conversation:
    """A conversation of (role, content) pairs."""
    return Conversation(tuple(Message(role, content) for role, content in turns), "test:1")


def write_jsonl(path: Path, conversations: Iterable[Sequence[dict[str, str]]]) -> Path:
    """Write conversations as rows of ``messages``."""
    lines = [json.dumps({"messages": list(messages)}, ensure_ascii=False) for messages in conversations]
    path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    return path


SETTINGS = {"layers": [0, 2], "num_tokens": 4096, "plan_tokens": "all", "rows_per_shard": 256, "batch_tokens": 512}
"""Small units: two shards of 256 rows."""


def make_job(model: Path, data: Path, **settings: object) -> Job:
    """A job on the CPU with small units; ``settings`` are keys of the recipe's [harvest] table."""
    config = HarvestConfig.model_validate({"model": str(model), "dataset": str(data)} | SETTINGS | settings)
    return prepare(config, find_device("cpu"))


def make_cache(path: Path, model: Path, data: Path, **settings: object) -> Cache:
    """Plan and fill a cache through the real harvest."""
    job = make_job(model, data, **settings)
    open_plan(job, path)
    return harvest(job, path)


def promised(cache: Path) -> dict[str, object]:
    """Everything of a cache whose bytes are promised: files of plan, passes and arrays, and what records say.

    Writers' names, times and versions stand outside the promise.
    """
    found: dict[str, object] = {}
    for path in sorted(cache.rglob("*")):
        name = str(path.relative_to(cache))
        if path.is_file() and name.startswith(("activations.zarr/", "tokenizer/", "passes/", "plan.json")):
            found[name] = path.read_bytes()
        elif path.suffix == ".json" and name.startswith("commits/"):
            record = json.loads(path.read_text())
            found[name] = (
                record["rows"], record["nonfinite"], record["made_with"]["batches_halved"],
                [(entry["path"], entry["size"], entry["xxh3"]) for entry in record["files"]],
                (record["blocks"]["size"], record["blocks"]["xxh3"]),
            )
    return found
