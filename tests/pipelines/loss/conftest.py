"""Caches of conversations and of blocks, of the same chats, and the tiny Llama that they were made with."""

from pathlib import Path

import pytest
import torch

from harvest.device import find_device
from harvest.model import find_model, load_language_model
from pipelines.loss.run import LanguageModel
from pipelines.loss.split_model import SplitModel
from shared.reading.cache import open_cache
from tests import tiny
from train.evaluation.evaluate import Subject
from train.policy import TokenPolicy

LAYER = 2


@pytest.fixture(scope="session")
def chats(tmp_path_factory) -> Path:
    """700 chats, of which 4 % are held out: more than a block of 2,048 tokens."""
    return tiny.write_jsonl(tmp_path_factory.mktemp("data") / "chats.jsonl", tiny.chats(700, seed=5))


def make_cache(folder, llama, chats, **settings):
    """A cache of all that is held out and a little to train on."""
    path = folder / "cache"
    tiny.make_cache(path, llama, chats, **{"num_tokens": 512, "plan_tokens": 2048, **settings})
    return path


@pytest.fixture(scope="session")
def fast_folder(tmp_path_factory, llama, chats):
    return make_cache(tmp_path_factory.mktemp("fast"), llama, chats)


@pytest.fixture(scope="session")
def block_folder(tmp_path_factory, llama, chats):
    return make_cache(tmp_path_factory.mktemp("block"), llama, chats, order="block", block_length=64)


@pytest.fixture
def fast(fast_folder):
    return open_cache(fast_folder)


@pytest.fixture
def block(block_folder):
    return open_cache(block_folder)


@pytest.fixture(scope="session")
def plain(llama):
    """The whole tiny Llama as transformers gives it."""
    return load_language_model(find_model(str(llama)), "float32", "sdpa", torch.device("cpu"))


@pytest.fixture
def model(llama):
    """The tiny Llama, split behind layer 2 of 4."""
    source = find_model(str(llama))
    whole = load_language_model(source, "float32", "sdpa", torch.device("cpu"))
    return LanguageModel(source, SplitModel(whole, LAYER), find_device("cpu"))


@pytest.fixture
def subject(tmp_path):
    """Makes a subject of a reconstruction ``(x, token_id) -> x_hat``."""
    def make(reconstruct, name="subject"):
        folder = tmp_path / name
        folder.mkdir()
        return Subject(folder, name, name, 0, lambda x, token_id: (reconstruct(x, token_id), None), TokenPolicy(), 1.0)

    return make
