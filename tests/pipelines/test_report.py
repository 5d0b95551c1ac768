"""The page: self-contained, safe, and its numbers those of eval.json."""

import json
from html.parser import HTMLParser

import pytest

from pipelines.figures_table import figure_rows
from pipelines.report import _TEMPLATES, render
from pipelines.runs import read_runs
from tests.pipelines.conftest import HOSTILE


class Page(HTMLParser):
    """Collects what the tests look at."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.sources, self.text, self.rows = set(), [], [], []
        self.attributes = set()
        self._in_table = False
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}
        named = dict(attrs)
        self.sources += [named[name] for name in ("src", "srcset", "data", "poster", "action") if name in named]
        if tag == "table":
            self._in_table = named.get("id") == "figure-table"
        if tag == "tr" and self._in_table:
            self.rows.append([])
        if tag in ("td", "th") and self._in_table:
            self.rows[-1].append(["", named.get("title")])

    def handle_data(self, data):
        self.text.append(data)
        if self._in_table and self.rows and self.rows[-1]:
            self.rows[-1][-1][0] += data


@pytest.fixture(scope="module")
def page(demo):
    return Page(demo.page.read_text())


def test_the_page_needs_nothing_else(page):
    assert len(page.sources) == 5
    assert all(source.startswith("data:image/svg+xml;base64,") for source in page.sources)
    assert not page.tags & {"script", "link", "iframe", "object", "embed", "base", "form", "video", "audio"}


def test_what_a_user_typed_is_text_and_nothing_else(demo, page):
    assert not {name for name in page.attributes if name.startswith("on")}
    raw = demo.page.read_text()
    assert "<script" not in raw
    assert "{{ 7" in "".join(page.text).replace("\u200b", "")
    assert raw.count("<style>") == raw.count("</style>") == 1
    shown = "".join(page.text)
    # Cut into tokens, but whole as text.
    for word in HOSTILE.replace("<|eot_id|>", "").split():
        assert word in shown, word


def test_the_numbers_of_the_table_are_those_of_eval_json(demo, page):
    runs = read_runs(demo.folders)
    header, *body = page.rows
    assert len(header) == 2 + len(runs)
    metrics = {"explained variance share of 1": "explained_variance", "L0 active latents per token": "l0",
               "mse squared activation per dimension": "mse"}
    checked = 0
    for (title, _), (subset, _), *cells in body:
        if title not in metrics or not subset.startswith("content tokens"):
            continue
        for (cell, exact), folder in zip(cells, demo.folders, strict=True):
            expected = json.loads((folder / "eval.json").read_text())["subsets"]["content"][metrics[title]]
            assert exact == repr(expected)
            assert float(cell.split()[0]) == pytest.approx(expected, rel=2e-2, abs=1e-3)
            checked += 1
    assert checked == 6


def test_every_row_names_its_subset_and_unit(demo, page):
    rows = figure_rows(read_runs(demo.folders))
    shown = [(row[0][0].strip(), row[1][0].strip()) for row in page.rows[1:]]
    assert shown == [(f"{row.title} {row.unit}", row.subset) for row in rows]
    assert all(row.title and row.unit and row.subset for row in rows)


def test_a_figure_that_is_not_defined_is_a_dash(demo):
    runs = read_runs(demo.folders)
    for run in runs:
        run.evaluation["subsets"]["content"]["explained_variance"] = None
        run.evaluation["subsets"].pop("special")
    rows = {(row.title, row.subset.split(" (")[0]): row for row in figure_rows(runs)}
    assert rows["explained variance", "content tokens"].cells == ["–", "–"]
    assert rows["log2 mse", "special tokens, FIRST among them"].cells == ["–", "–"]


def test_a_value_the_template_lacks_is_an_error():
    with pytest.raises(Exception, match="undefined"):
        render(_TEMPLATES, "report.html")
