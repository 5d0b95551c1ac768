"""What a person sees of inspected conversations: in a terminal with and without colours, and on a page."""

import io
import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest
from rich.console import Console
from rich.style import Style

from harvest.inspection_page import write_page
from harvest.inspection_sample import Wanted, inspect_source
from harvest.inspection_terminal import print_inspection
from harvest.inspection_view import facts, legend, show_row
from shared.format.tokens import TokenClass, enum_name
from tests import tiny

HOSTILE = (
    '<script>alert(1)</script> "><img src=x onerror=alert(2)> </style> {{ 7 * 7 }} [red]x[/red] <|im_end|> '
    "\x1b[31m\x1b]0;title\x07 \x9b31m \u202e שלום 🤷\u200d♀\ufe0f\ttab\r\nend"
)


@pytest.fixture(scope="module")
def found(qwen2, tmp_path_factory):
    """Two chats, one of them hostile, the other without a prompt of its own and 300 words long."""
    data = tiny.write_jsonl(tmp_path_factory.mktemp("view") / "chats.jsonl", [
        [{"role": "system", "content": HOSTILE}, {"role": "user", "content": HOSTILE},
         {"role": "assistant", "content": "fine"}],
        [{"role": "user", "content": "hello " * 300}, {"role": "assistant", "content": "thank you"}],
    ])
    return inspect_source(tiny.make_job(qwen2, data), Wanted())


def printed(found, longest=10_000, **options):
    Style._add.cache_clear()  # rich keeps styles as they were written for the last terminal, in a process that has two
    out = io.StringIO()
    rows = [show_row(found, row, longest) for row in found.shown]
    print_inspection(Console(file=out, width=100, **options), found, rows)
    return out.getvalue()


@pytest.mark.parametrize("colours", ["truecolor", "256"])
def test_nothing_of_a_conversation_controls_the_terminal(found, colours):
    plain = printed(found)
    coloured = printed(found, force_terminal=True, color_system=colours, _environ={})
    without = re.sub(r"\x1b\[[\d;]*m", "", coloured)  # our own colours, and nothing but colours
    assert without != coloured
    for text in (plain, without):
        assert not {char for char in text if not char.isprintable()} - set("\n\u200d")
        assert "\\x1b" in text
        assert "\\u202e" in text
        assert "[red]" in text.replace("┊", "")


@pytest.mark.parametrize(("colours", "backgrounds", "sign"), [("truecolor", 2, "Two shades"), ("256", 1, "underlined")])
def test_neighbouring_tokens_of_a_class_look_different_and_keep_its_colour(found, colours, backgrounds, sign):
    alone = replace(found, shown=found.shown[1:])
    tokens = [token for turn in show_row(found, found.shown[1], 10_000).conversation.turns for token in turn.tokens]
    of_user = {token.text for token in tokens if token.token_class == TokenClass.USER}
    of_user -= {token.text for token in tokens if token.token_class != TokenClass.USER}
    text = printed(alone, force_terminal=True, color_system=colours, _environ={})
    styles = {style for style, shown in re.findall(r"\x1b\[([\d;]+)m([^\x1b]+)\x1b", text) if shown in of_user}
    assert len(styles) == 2
    assert len({re.search(r"48;[25];[\d;]+", style)[0] for style in styles}) == backgrounds
    assert sign in text


@pytest.mark.parametrize("options", [
    {}, {"force_terminal": True, "color_system": "truecolor", "_environ": {"NO_COLOR": "1"}},
    {"force_terminal": True, "color_system": "standard", "_environ": {}},
], ids=["pipe", "NO_COLOR", "16 colours"])
def test_without_colours_each_line_names_its_class(found, options):
    text = re.sub(r"\x1b\[[\d;]*m", "", printed(found, **options)).split("Statistics")[0]
    named = set(re.findall(r"^  (\w+) +\S", text, re.M))
    assert {enum_name(kind) for kind in found.statistics.by_class} <= named
    long_turn = show_row(found, found.shown[1], 10_000).conversation.turns[1]
    tokens = "┊".join(token.text for token in long_turn.tokens if token.token_class == TokenClass.USER)
    assert tokens.count("┊") >= 299
    assert "".join(tokens.split()) in "".join(text.split())


def test_a_long_conversation_is_cut_and_says_so(found):
    text = printed(found, longest=50)
    assert re.search(r"the first 50 of \d+ tokens; more: --tokens", text)
    assert len(text) < len(printed(found)) / 2


def test_the_legend_counts_the_tokens_that_are_shown(found):
    rows = [show_row(found, row, 10_000) for row in found.shown]
    assert {entry.class_name: entry.num_tokens for entry in legend(rows)} == {
        enum_name(kind): found.statistics.by_class[kind] for kind in TokenClass if found.statistics.by_class[kind]}


def test_the_facts_name_what_decides_the_tokens(found):
    said = dict(facts(found))
    assert said["template's prompt"] == tiny.DEFAULT_SYSTEM
    assert said["control strings"].startswith("1 of 2 (50.0%)")
    assert said["control strings"].endswith("control_tokens = escape")
    assert said["system prompt"] == "1 of 2 (50.0%) have their own, 1 of 2 (50.0%) get the template's"
    assert said["template variables"] == "date_string = 26 Jul 2024"
    assert said["begins with"].startswith("'<|im_start|>'")


class Page(HTMLParser):
    """Tags, attributes and text of a page, and the text of its tokens."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.attributes, self.tokens, self.text = set(), [], [], ""
        self._in_token = False
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.add(tag)
        self.attributes += attributes
        self._in_token = tag == "span" and any(name == "title" for name, _ in attributes)
        if self._in_token:
            self.tokens.append("")

    def handle_endtag(self, tag):
        self._in_token = False

    def handle_data(self, data):
        self.text += data
        if self._in_token:
            self.tokens[-1] += data


@pytest.fixture(scope="module")
def raw(found, tmp_path_factory):
    path = tmp_path_factory.mktemp("page") / "new" / "page.html"
    write_page(path, found, [show_row(found, row, 10_000) for row in found.shown])
    return path.read_text(encoding="utf-8")


def test_what_a_user_typed_is_text_on_the_page_and_nothing_else(raw, found):
    page = Page(raw)
    assert not page.tags & {"script", "img", "iframe", "object", "link"}
    assert raw.count("<style>") == raw.count("</style>") == 1
    assert not [name for name, _ in page.attributes if name.startswith("on")]
    text = "".join(page.tokens)
    assert text.count("<script>alert(1)</script>") == 2
    assert "{{ 7 * 7 }}" in text
    assert "\x1b" not in raw
    assert "\u202e" not in raw


def test_names_and_tokens_that_are_markup_by_themselves_are_text_too(tmp_path):
    """Mistral's ``<s>`` is a tag of HTML and one token; the other tokenizers cut what a user typed into pieces."""
    model = tiny.save_model(tmp_path / "model", "llama", "mistral")
    data = tiny.write_jsonl(tmp_path / "<b id=x>&amp;.jsonl", tiny.chats(2, system=False))
    found = inspect_source(tiny.make_job(model, data), Wanted())
    write_page(tmp_path / "page.html", found, [show_row(found, row, 10_000) for row in found.shown])
    page = Page((tmp_path / "page.html").read_text(encoding="utf-8"))
    assert not page.tags & {"s", "b", "inst"}
    assert page.tokens[:2] == ["<s>", "[INST]"]
    assert "<b id=x>&amp;.jsonl:1" in page.text


def test_the_page_needs_nothing_else(raw):
    assert not re.search(r"https?://|url\(|@import", raw)
    assert "default-src 'none'" in raw
    assert all(value.startswith("#") for name, value in Page(raw).attributes if name in {"href", "src"})


def test_every_token_says_what_it_is_when_hovered(raw, found):
    titles = [value for name, value in Page(raw).attributes if name == "title"]
    pattern = r"(\w+); id [\d ]+; position \d+; turn \d+, \w+; [A-Z_ ]+"
    assert all(re.fullmatch(pattern, title) for title in titles)
    ids = [int(number) for title in titles for number in re.search(r"id ([\d ]+);", title)[1].split()]
    assert ids == [number for row in found.shown for number in row.encoded.token_id]
