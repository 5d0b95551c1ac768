"""Inspected conversations in a terminal: tokens in colours, or with the names of their classes where there are none."""

from itertools import groupby

from rich.color import Color
from rich.console import Console
from rich.rule import Rule
from rich.style import Style
from rich.table import Table
from rich.text import Text

from harvest.inspection_sample import Inspection
from harvest.inspection_view import Distribution, ShownRow, distributions, facts, legend
from shared.format.tokens import TokenClass
from shared.showing.conversation import ShownConversation
from shared.showing.looks import LOOKS
from shared.showing.token_text import visible_alone

_BOUNDARY = "┊"
"""Between two tokens where there are no colours."""
_BAR = 24
_OTHER_TOKEN = {"truecolor": "Two shades alternate from token to token", "256": "Every other token is underlined"}
"""How a token is told from the next one, in the terminals that can show our light backgrounds; of the two shades a
terminal of 256 colours would make greys."""


def print_inspection(console: Console, found: Inspection, rows: list[ShownRow]) -> None:
    """Print conversations, the legend of their classes, and the statistics.

    All text is built as `Text`, so that nothing of a conversation is taken for markup.
    """
    colours = "" if console.no_color else console.color_system or ""
    coloured = colours in _OTHER_TOKEN
    for row in rows:
        console.print(_heading(row.title))
        if row.conversation:
            console.print(_turns(row.conversation, colours) if coloured else _lines(row.conversation))
        if row.note:
            console.print(Text(row.note, "italic"))
        console.print()
    if rows:
        console.print(_legend(rows, coloured))
        signs = _OTHER_TOKEN.get(colours, f"{_BOUNDARY} stands between two tokens")
        console.print(Text(f"{signs}. ↵ newline, ⇥ tab, ␣ space of the template, \\x1b control character.\n", "italic"))
    console.print(_heading("Statistics"))
    table = _grid()
    for name, said in facts(found):
        table.add_row(Text(name, "bold"), Text(said))
    console.print(table)
    for one in distributions(found):
        console.print()
        console.print(Text.assemble((one.title, "bold"), f": {one.what}"))
        console.print(_bars(one))
    for note in found.notes:
        console.print()
        console.print(Text(f"note: {note}", "bold"))


def _heading(title: str) -> Rule:
    return Rule(Text(title, "bold"), align="left")


def _grid() -> Table:
    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True)
    table.add_column()
    return table


def _legend(rows: list[ShownRow], coloured: bool) -> Table:
    table = _grid()
    for entry in legend(rows):
        kind = TokenClass[entry.class_name.upper()]
        table.add_row(Text(f" {entry.class_name} ", _style(kind) if coloured else ""), Text(entry.meaning))
    return table


def _bars(distribution: Distribution) -> Table:
    table = _grid()
    table.add_column(justify="right")
    table.add_column(justify="right")
    largest = max(bar.share for bar in distribution.bars)
    for bar in distribution.bars:
        filled = max(1, round(_BAR * bar.share / largest)) if bar.count else 0
        table.add_row(Text(f"  {bar.label}"), Text("█" * filled), Text(f"{bar.count:,}"), Text(f"{bar.share:.1%}"))
    return table


def _turns(conversation: ShownConversation, colours: str) -> Table:
    """Turns in colours, whose role stands beside them."""
    table = _grid()
    number = 0
    for turn in conversation.turns:
        text = Text()
        for token in turn.tokens:
            number += 1
            style = _style(token.token_class)
            if number % 2 == 0:
                style += Style(underline=True) if colours == "256" else _style(token.token_class, 0.9)
            shown = token.text.rstrip("\n")
            text.append(visible_alone(shown), style)
            text.append(token.text[len(shown):])  # without colours, which would run to the edge of the window
        table.add_row(Text(turn.role, "bold"), text)
    return table


def _style(kind: TokenClass, shade: float = 1.0) -> Style:
    """Colours of a class; a shade under 1 is darker."""
    look = LOOKS[kind]
    background = Color.parse(look.background).get_truecolor()
    darker = Color.from_rgb(*(round(shade * part) for part in background))
    return Style(color=look.ink, bgcolor=darker, bold=look.bold or None, italic=look.italic or None)


def _lines(conversation: ShownConversation) -> Table:
    """A line for each run of tokens of one class."""
    table = _grid()
    for number, turn in enumerate(conversation.turns):
        table.add_row(Text(f"turn {number}: {turn.role}", "bold"), Text())
        for name, tokens in groupby(turn.tokens, key=lambda token: token.class_name):
            joined = _BOUNDARY.join(visible_alone(token.text) for token in tokens)
            joined = joined.removesuffix("\n").replace(f"\n{_BOUNDARY}", f"{_BOUNDARY}\n")
            table.add_row(Text(f"  {name}"), Text(joined))
    return table
