"""Fixtures that several folders use: tiny models, chats, and one filled cache, each made once a session."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # before huggingface_hub is imported: no test needs a network

from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, settings

from harvest.run import harvest
from shared.reading.cache import Cache, open_cache
from tests import tiny

settings.register_profile("ours", deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True)
settings.load_profile("ours")

torch.set_num_threads(1)  # tiny tensors: threads cost more than they bring, and equal bytes need equal threads


@pytest.fixture(scope="session", autouse=True)
def _no_waiting_for_the_disk():
    """No power is cut in these tests: fsync, most of a small commit's time, is left out in this process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)
        yield


@pytest.fixture(scope="session")
def llama(tmp_path_factory) -> Path:
    """A folder with a tiny random Llama of 4 layers and a Llama-3-like template."""
    return tiny.save_model(tmp_path_factory.mktemp("models") / "tiny-llama", "llama")


@pytest.fixture(scope="session")
def qwen2(tmp_path_factory) -> Path:
    """A folder with a tiny random Qwen2 of 4 layers and a ChatML template."""
    return tiny.save_model(tmp_path_factory.mktemp("models") / "tiny-qwen2", "qwen2")


@pytest.fixture(scope="session")
def chat_file(tmp_path_factory) -> Path:
    """60 ordinary chats, about 6,000 tokens."""
    return tiny.write_jsonl(tmp_path_factory.mktemp("data") / "chats.jsonl", tiny.chats(60))


@pytest.fixture(scope="session")
def cache_folder(tmp_path_factory, llama, chat_file) -> Path:
    """A whole cache of layers 0 and 2 of the tiny Llama. Read it; copy it to change it."""
    path = tmp_path_factory.mktemp("caches") / "tiny"
    tiny.make_cache(path, llama, chat_file)
    harvest(tiny.make_job(llama, chat_file, num_tokens=1_000_000), path)
    return path


@pytest.fixture
def cache(cache_folder) -> Cache:
    """The whole cache, freshly opened."""
    return open_cache(cache_folder)
