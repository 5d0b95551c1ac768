"""The three parts of a model, put together, are the model; and what stands in for a layer's output reaches the rest."""

import pytest
import torch

from harvest.model import find_model, load_language_model
from pipelines.loss.split_model import SplitModel
from shared.errors import RecipeError

CPU = torch.device("cpu")


@pytest.fixture(params=["llama", "qwen2"])
def whole(request):
    return load_language_model(find_model(str(request.getfixturevalue(request.param))), "float32", "sdpa", CPU)


@pytest.fixture
def ids():
    return torch.randint(5, 300, (3, 17), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("layer", [0, 2, 3])
def test_the_parts_one_after_the_other_are_the_whole_model(whole, ids, layer):
    expected = whole(input_ids=ids).logits
    split = SplitModel(whole, layer)
    rows = split.first(ids)
    hidden = split.rest(rows)
    assert torch.equal(hidden, split.checked(ids))
    # The head is run on tokens in a row, so its products may be summed in another order.
    assert torch.allclose(split.logits(hidden.flatten(0, 1)).view_as(expected), expected, rtol=0, atol=1e-5)
    assert torch.equal(whole(input_ids=ids).logits, expected)


@pytest.mark.parametrize("layer", [0, 2, 3])
def test_what_stands_in_for_the_rows_does_what_it_does_by_a_hook(whole, ids, layer):
    other = torch.randn(3, 17, 32, generator=torch.Generator().manual_seed(1))
    handle = whole.model.layers[layer].register_forward_hook(lambda *_: other)
    expected = whole(input_ids=ids).logits
    handle.remove()
    split = SplitModel(whole, layer)
    found = split.logits(split.rest(other).flatten(0, 1)).view_as(expected)
    assert torch.allclose(found, expected, rtol=0, atol=1e-5)


def test_padding_to_the_right_changes_nothing(whole, ids):
    split = SplitModel(whole, 1)
    padded = torch.nn.functional.pad(ids, (0, 9), value=7)
    # Other shapes, so sums may come in another order.
    assert torch.allclose(split.whole(padded)[1][:, :17], split.whole(ids)[1], rtol=0, atol=1e-5)


def test_a_model_that_hands_on_more_than_rows_is_refused(whole, ids):
    kept = []
    whole.model.layers[0].register_forward_hook(lambda _, __, output: kept.append(output))
    whole.model.layers[3].register_forward_hook(lambda _, __, output: output + kept.pop() if kept else output)
    with pytest.raises(RecipeError, match=r"cannot be started from the output of layer 1: .* --loss-tokens 0"):
        SplitModel(whole, 1).checked(ids)
