"""One demo on a tiny random Llama, run once for all tests of this folder, with chats that try to break pages."""

from dataclasses import dataclass
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from pipelines.__main__ import main
from shared.reading.cache import Cache, open_cache
from tests import tiny

HOSTILE = '<script>alert(1)</script> "><img src=x onerror=alert(2)> {{ 7 * 7 }} <|eot_id|> café 🤷‍♀️ &amp; </style>'

RECIPE = """
[harvest]
model = "{model}"
dataset = "{data}"
layers = [0, 2]
num_tokens = 8000
plan_tokens = "all"
rows_per_shard = 256
batch_tokens = 512

[train]
layer = 2
batch_size = 256
num_tokens = 12_800
log_steps = 5

[[sae]]
architecture = "batchtopk"
expansion = 4
k = 4

[[sae]]
architecture = "standard"
expansion = 4
l0 = 8
"""


@dataclass(frozen=True)
class Demo:
    """A finished demo."""

    recipe: Path
    cache_path: Path
    runs: Path
    output: str

    @property
    def arguments(self) -> list[str]:
        return ["demo", "--recipe", str(self.recipe), "--cache", str(self.cache_path), "--runs", str(self.runs),
                "--device", "cpu"]

    @property
    def layer_folder(self) -> Path:
        return self.runs / self.cache_path.name / "layer2"

    @property
    def folders(self) -> list[Path]:
        return sorted(path.parent for path in self.layer_folder.glob("*/run.json"))

    @property
    def page(self) -> Path:
        return self.runs / self.cache_path.name / "report" / "index.html"

    def cache(self) -> Cache:
        return open_cache(self.cache_path)


def invoke(*arguments: str) -> Result:
    """Run ``python -m pipelines`` in this process; an error of ours is raised."""
    result = CliRunner().invoke(main, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result


def files_of(folder: Path) -> dict[Path, bytes]:
    """Every file of a folder by its path in it."""
    return {path.relative_to(folder): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def hostile_chats(number: int) -> list[list[dict[str, str]]]:
    """Ordinary chats whose every other user turn carries `HOSTILE`."""
    conversations = tiny.chats(number, seed=5)
    for conversation in conversations[::2]:
        for message in conversation:
            if message["role"] == "user":
                message["content"] += " " + HOSTILE
    return conversations


@pytest.fixture(scope="session")
def demo(tmp_path_factory, llama) -> Demo:
    """A demo that has been run to its end. Read it; what changes it runs the same command again."""
    folder = tmp_path_factory.mktemp("demo")
    data = tiny.write_jsonl(folder / "chats.jsonl", hostile_chats(150))
    recipe = folder / "small.toml"
    recipe.write_text(RECIPE.format(model=llama, data=data))
    places = Demo(recipe, folder / "caches" / "small", folder / "runs", "")
    result = invoke(*places.arguments)
    return Demo(recipe, places.cache_path, places.runs, result.output)
