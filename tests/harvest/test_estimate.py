"""What a harvest needs: the number of tokens that is said to fit does fit, and no larger one would."""

from types import SimpleNamespace

from hypothesis import given
from hypothesis import strategies as st

from harvest.estimate import room_for, tokens_that_fit
from shared.format.layout import Geometry


@given(
    num_rows=st.integers(1, 5000), held_out=st.integers(0, 1500), shards=st.sampled_from([1, 2, 4]),
    share=st.floats(0, 1.1), done=st.sets(st.integers(0, 40)),
)
def test_the_tokens_that_fit_are_the_most_that_fit(num_rows, held_out, shards, share, done):
    geometry = Geometry(num_rows, max(0, num_rows - held_out), 8, 256, shards)
    missing = set(range(geometry.num_units)) - done
    free = int(share * sum(room_for(geometry, unit, 3) for unit in missing))

    def cost(tokens):
        return sum(room_for(geometry, unit, 3) for unit in geometry.fill_order(tokens) if unit in missing)

    tokens = tokens_that_fit(SimpleNamespace(geometry=geometry), missing, 3, free)
    if tokens:
        assert cost(tokens) <= free
    if tokens < geometry.num_train_rows:
        assert cost(tokens + 1) > free
