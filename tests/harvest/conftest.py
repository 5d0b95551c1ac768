"""A warm process for `python -m harvest`."""

import pytest

from tests.warm import Warm


@pytest.fixture(scope="session")
def command(tmp_path_factory):
    """Runs `python -m harvest ...` in processes of their own."""
    warm = Warm(
        "harvest", tmp_path_factory.mktemp("commands"), "transformers.models.llama.modeling_llama",
        "transformers.models.qwen2.modeling_qwen2", "zarr.codecs", "torch._dynamo",
    )
    yield warm
    warm.close()
