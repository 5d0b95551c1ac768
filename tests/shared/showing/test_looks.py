"""The one table of colours."""

import pytest

from shared.format.tokens import TokenClass, enum_name
from shared.showing.looks import LOOKS
from shared.showing.page import render


def test_every_class_has_a_look_of_its_own():
    assert list(LOOKS) == list(TokenClass)
    assert len(set(LOOKS.values())) == len(LOOKS)
    assert len({look.meaning for look in LOOKS.values()}) == len(LOOKS)


@pytest.mark.parametrize("kind", TokenClass, ids=enum_name)
def test_text_stands_out_from_its_background_as_accessible_pages_ask(kind):
    """WCAG 2.1, 1.4.3: a contrast of 4.5 at least, also on the darker of the two shades."""
    ink, background = _luminance(LOOKS[kind].ink), _luminance(LOOKS[kind].background, 0.9)
    assert (max(ink, background) + 0.05) / (min(ink, background) + 0.05) >= 4.5


def test_the_style_of_pages_is_made_from_the_table(tmp_path):
    (tmp_path / "page.html").write_text('{% include "style.css" %}')
    style = render(tmp_path, "page.html")
    for kind, look in LOOKS.items():
        [line] = [line for line in style.splitlines() if line.startswith(f".{enum_name(kind)} {{")]
        assert look.background in line
        assert look.ink in line
        assert look.border in line
        assert ("font-weight: 600" in line, "font-style: italic" in line) == (look.bold, look.italic)


def _luminance(colour, shade=1.0):
    parts = [shade * int(colour[start:start + 2], 16) / 255 for start in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), linear, strict=True))
