"""What is said of an inspected data set, for the terminal and the page alike: facts in words, distributions as bars."""

from dataclasses import dataclass

from harvest.inspection import Bar, bars, histogram, quantiles
from harvest.inspection_sample import Inspection, Seen
from shared.format.tokens import Role, TokenClass, enum_name
from shared.showing.conversation import LegendEntry, ShownConversation, show_conversation
from shared.showing.looks import LOOKS
from shared.showing.token_text import visible

_QUANTILES = {"shortest": 0.0, "5th percentile": 0.05, "25th": 0.25, "median": 0.5, "75th": 0.75, "95th": 0.95,
                    "99th": 0.99, "longest": 1.0}


@dataclass(frozen=True)
class Distribution:
    """Counts that are shown as bars."""

    title: str
    what: str
    """What is counted."""
    bars: list[Bar]


@dataclass(frozen=True)
class ShownRow:
    """A row of the data set: a conversation, or why it is none."""

    title: str
    conversation: ShownConversation | None
    note: str
    """What was left out or skipped, "" if nothing."""


def facts(found: Inspection) -> list[tuple[str, str]]:
    """Names and what is to be said of them, a line each; safe for a terminal."""
    seen = found.statistics
    of = seen.num_conversations
    said = [("model", found.model), ("data", " + ".join(found.sources))]
    if found.cache:
        said.append(("cache", found.cache))
    said.append(("sample", found.extent))
    said.append(("order", _order(found)))
    said.append(("skipped", _skipped(found)))
    said.append(("tokens", f"{seen.num_tokens:,} in {of:,} conversations"))
    if of:
        shares = zip(_QUANTILES, quantiles(seen.lengths, _QUANTILES.values()), strict=True)
        said.append(("lengths", ", ".join(f"{name} {length:,}" for name, length in shares)))
        said.append(("cut", f"{_share(seen.num_truncated, of)} at max_length, {_amount(found.settings['max_length'])}"))
        said.append(("system prompt", f"{_share(seen.num_system, of)} have their own, "
                                      f"{_share(seen.num_default_system, of)} get the template's"))
        firsts = ", ".join(repr(found.decode([number])) for number, _ in seen.first_ids.most_common(3))
        said.append(("begins with", f"{firsts}; with a BOS that is no turn's start: {_share(seen.num_bos, of)}"))
        said.append(("control strings", f"{_share(seen.num_escaped, of)} have text spelled like a control token; "
                                        f"control_tokens = {found.settings['control_tokens']}"))
    template = found.default_system or ("none" if found.cache is None else "none, or not in these conversations")
    said.append(("template's prompt", template))
    variables = found.settings["template_variables"]
    if isinstance(variables, dict) and variables:
        said.append(("template variables", ", ".join(f"{name} = {value}" for name, value in variables.items())))
    return [(name, visible(text)) for name, text in said]


def distributions(found: Inspection) -> list[Distribution]:
    """The statistics that are more than a line."""
    seen = found.statistics
    roles = [(enum_name(role), seen.by_role[role]) for role in Role if seen.by_role[role]]
    classes = [(enum_name(kind), seen.by_class[kind]) for kind in TokenClass if seen.by_class[kind]]
    sources = [(visible(found.sources[number]), count) for number, count in sorted(seen.by_source.items())
               if number < len(found.sources)]
    shown = [
        Distribution("Lengths", "tokens of a conversation", histogram(seen.lengths)),
        Distribution("Turns", "turns of a conversation that hold text", _turns(seen.turns)),
        Distribution("Roles", "tokens, by whose turn they stand in", bars(roles)),
        Distribution("Classes", "tokens, by class", bars(classes)),
        Distribution("Scripts", "letters of messages, by script", _largest(seen.scripts.most_common(), 8)),
    ]
    if len(sources) > 1:
        shown.append(Distribution("Data sets", "tokens of the sample, by data set", bars(sources)))
    return [one for one in shown if one.bars]


def show_row(found: Inspection, seen: Seen, longest: int) -> ShownRow:
    """A row with its title; of a conversation the first ``longest`` tokens."""
    title = f"{seen.number}: {visible(seen.place)}"
    if seen.encoded is None:
        assert seen.skipped is not None
        return ShownRow(title, None, visible(f"skipped, {seen.skipped.reason}: {seen.skipped.detail}"))
    shown = show_conversation(seen.encoded, found.decode, seen.number, longest)
    notes = []
    if seen.truncated:
        of = f" of {seen.length:,} tokens" if seen.length > shown.num_tokens else ""
        notes.append(f"cut at max_length: the model sees {shown.num_tokens:,}{of}")
    if shown.num_shown < shown.num_tokens:
        notes.append(f"the first {shown.num_shown:,} of {shown.num_tokens:,} tokens; more: --tokens")
    turns = len({int(turn) for turn in seen.encoded.turn})
    return ShownRow(f"{title}, {shown.num_tokens:,} tokens, {turns:,} turns", shown, "; ".join(notes))


def legend(rows: list[ShownRow]) -> list[LegendEntry]:
    """The classes of all conversations that are shown, each with its meaning and its tokens there."""
    counts = dict.fromkeys(map(enum_name, TokenClass), 0)
    for row in rows:
        for entry in row.conversation.legend if row.conversation else ():
            counts[entry.class_name] += entry.num_tokens
    return [LegendEntry(enum_name(kind), LOOKS[kind].meaning, counts[enum_name(kind)])
            for kind in TokenClass if counts[enum_name(kind)]]


def _skipped(found: Inspection) -> str:
    reasons = ", ".join(f"{reason} {count:,}" for reason, count in sorted(found.statistics.skipped.items()))
    total = sum(found.statistics.skipped.values())
    if not total:
        return "none"
    if found.cache is not None:
        return f"{total:,} rows when it was planned ({reasons})"
    return f"{_share(total, found.statistics.num_rows)} rows ({reasons})"


def _order(found: Inspection) -> str:
    order = found.settings["order"]
    kind = order.get("kind") if isinstance(order, dict) else order
    if kind == "fast":
        return "fast: each conversation goes through the model on its own"
    blocks = f"{kind}, blocks of {_amount(order.get('length') if isinstance(order, dict) else None)}"
    return blocks if found.cache else f"{blocks}; where they begin, and their separators, are seen in the cache"


def _turns(turns: list[int]) -> list[Bar]:
    """Numbers of turns: one by one while they are small, then in bins that double."""
    small = [(str(number), turns.count(number)) for number in range(max(turns, default=0) + 1) if number <= 8]
    large = [turn for turn in turns if turn > 8]
    more = [(bar.label, bar.count) for bar in histogram(large)]
    if more and large:
        first, _, rest = more[0][0].partition(" to ")
        if first == "8":
            more[0] = (f"9 to {rest}", more[0][1])
    while small and not small[0][1]:
        small.pop(0)
    return bars([*small, *more])


def _largest(counts: list[tuple[str, int]], number: int) -> list[Bar]:
    rest = sum(count for _, count in counts[number:])
    return bars([*counts[:number], *([("all others", rest)] if rest else [])])


def _share(count: int, of: int) -> str:
    return f"{count:,} of {of:,} ({count / of:.1%})"


def _amount(value: object) -> str:
    return f"{value:,} tokens" if isinstance(value, int) else str(value)
