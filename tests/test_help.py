"""Every command says what it does, with an example that is one of its own."""

import re
import shlex

import click
import pytest
from click.testing import CliRunner

import harvest.__main__
import pipelines.__main__
import train.__main__

STAGES = {"harvest": harvest.__main__.main, "train": train.__main__.main, "pipelines": pipelines.__main__.main}
COMMANDS = [(stage, name) for stage, group in STAGES.items() for name in ("", *group.commands)]


def lines_to_type(text, stage):
    return [line.strip() for line in text.splitlines() if line.strip().startswith(f"python -m {stage}")]


def parse(stage, command, arguments):
    """Parse the arguments of a command, and run nothing."""
    group = STAGES[stage]
    above = click.Context(group, info_name=stage, **group.context_settings)
    group.commands[command].make_context(command, arguments, parent=above)


@pytest.mark.parametrize(("stage", "name"), COMMANDS, ids=lambda word: word or "all")
def test_help_has_an_example_that_the_command_understands(stage, name):
    for option in ("--help", "-h"):
        shown = CliRunner().invoke(STAGES[stage], [*filter(None, [name]), option])
        assert shown.exit_code == 0, shown.output
        assert re.search(r"^ *Examples?:$", shown.output, re.MULTILINE)
    examples = lines_to_type(shown.output, stage)
    assert examples
    for line in examples:
        _, _, _, command, *arguments = shlex.split(line.split(" | ")[0])
        assert not name or command == name
        parse(stage, command, arguments)


def test_an_option_that_there_is_not_would_be_noticed():
    with pytest.raises(click.NoSuchOption):
        parse("train", "run", ["--colour", "red"])
