"""A warm process for `python -m harvest`."""

import pytest

from tests.canaries import make_home
from tests.warm import Warm


@pytest.fixture(scope="session")
def command(tmp_path_factory):
    """Runs `python -m harvest ...` in processes of their own, in an environment full of secrets."""
    warm = Warm(
        "harvest", tmp_path_factory.mktemp("commands"), "transformers.models.llama.modeling_llama",
        "transformers.models.qwen2.modeling_qwen2", "zarr.codecs", "torch._dynamo",
        variables=make_home(tmp_path_factory.mktemp("home")),
    )
    yield warm
    warm.close()
