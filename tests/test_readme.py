"""What the README tells people to type works, and what it lists is there."""

import re
import subprocess
from pathlib import Path

from harvest.known_datasets import KNOWN_DATASETS
from shared.registry import MODELS
from tests.pipelines.test_chat import EXAMPLE

README = Path(__file__).parents[1].joinpath("README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


def test_the_notebook_examples_run_as_they_stand_on_a_small_cache(cache_folder, capsys):
    namespace: dict[str, object] = {}
    for block in BLOCKS:
        if block != EXAMPLE:
            code = block.replace("caches/demo", str(cache_folder)).replace("layer=9", "layer=2")
            exec(code.replace("layer(9)", "layer(2)").replace("batch_size=1024", "batch_size=64"), namespace)
    assert "assistant" in capsys.readouterr().out
    assert namespace["t"].shape[1] == 32
    assert namespace["x"].shape == (64, 32)  # the last batch of the iterator


def test_the_example_of_using_an_sae_is_the_one_that_is_tested():
    assert EXAMPLE in BLOCKS


def test_every_alias_of_a_model_or_a_data_set_is_listed():
    assert all(f"`{alias}`" in README for alias in [*MODELS, *KNOWN_DATASETS])


def test_every_make_target_in_the_readme_is_a_target():
    targets = set(re.findall(r"\bmake ([a-z][a-z-]+)", README))
    known = subprocess.run(["make", "help"], capture_output=True, text=True, check=True, cwd=Path(__file__).parents[1])
    assert targets
    for target in targets:
        assert f"make {target} " in known.stdout
