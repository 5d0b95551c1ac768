"""The published figures are read as the paper has them."""

from pipelines.paper.published import ARCHITECTURES, METHODS, Cell, Published, read_published


def test_there_are_forty_cells_of_three_methods_and_two_architectures():
    published = read_published()
    cells = {(cell.model, cell.layer, cell.expansion) for cell, _ in published}
    assert len(cells) == 40
    assert {key for key in published} == {(Cell(*cell, method), architecture) for cell in cells for method in METHODS
                                          for architecture in ARCHITECTURES}


def test_the_headline_is_log2_of_special_tokens():
    """The abstract's 0.6468 against 5.1985 (its 1.5096 stands in the table as 1.5093)."""
    published = read_published()
    found = [published[Cell("Qwen2.5-7B-Instruct", 18, 8.0, method), "standard"] for method in METHODS]
    assert [one.log2_mse_st for one in found] == [5.1985, 1.5093, 0.6468]
    assert found[2] == Published(log2_mse=1.3892, log2_mse_st=0.6468)
