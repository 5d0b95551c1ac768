"""Training on a cache from anybody."""

import shutil

import pytest

from shared.errors import CorruptError
from shared.format.layout import GROUP
from tests.shared import hostile
from tests.shared.hostile import change_zarr, link_away, truncate
from train.batches import Batches
from train.choose_cache import choose_cache

SPOILERS = {
    "a link": lambda cache: link_away(cache / GROUP / "layers/2/resid_post/c/1", cache.parent / "moved"),
    "a codec": lambda cache: change_zarr(cache, "layers/2/resid_post", codecs=[{"name": "numcodecs.pickle"}]),
    "a short shard": lambda cache: truncate(cache / GROUP / "layers/2/resid_post/c/1/0", 100),
    "an endless one": lambda cache: truncate(cache / GROUP / "layers/2/resid_post/c/1/0", 1 << 43),
}


@pytest.mark.parametrize("name", SPOILERS)
def test_a_hostile_cache_is_refused_before_the_first_step(name, tmp_path):
    hostile.make(tmp_path / "cache")
    SPOILERS[name](tmp_path / "cache")
    with pytest.raises(CorruptError):
        Batches(choose_cache(str(tmp_path / "cache"), 2), 2, batch_size=32)


def test_a_hostile_cache_hides_no_other(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    hostile.make(tmp_path / "caches/good")
    bad = shutil.copytree(tmp_path / "caches/good", tmp_path / "caches/bad")
    truncate(bad / "plan.json", 1 << 43)
    assert choose_cache(None, 2).name == "good"
