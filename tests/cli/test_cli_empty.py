"""An empty value, as from a shell's variable that is not set, is refused by every option and argument."""

from collections.abc import Iterator

import click
import pytest
from click.testing import CliRunner

from ddbench.cli import root
from ddbench.errors import ConfigError
from ddbench.runs.resolving import Asked, foresee


def _values(command: click.Command, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], str, list[str]]]:
    """Every option and argument that takes a value: the command, how errors call it, and how it is given as ""."""
    above = click.Context(root, info_name="ddbench")
    before: list[str] = []  # arguments that stand before another
    for param in command.params:
        if isinstance(param, click.Option) and not param.is_flag:
            yield path, param.opts[0], [param.opts[0], ""]
        elif isinstance(param, click.Argument):
            yield path, param.make_metavar(above).strip("[]."), [*before, ""]
            before.append("x")
    if isinstance(command, click.Group):
        for name in command.list_commands(above):
            inner = command.get_command(above, name)
            assert inner is not None
            yield from _values(inner, (*path, name))


VALUES = list(_values(root))


def test_there_are_options_and_arguments_of_commands_and_of_groups() -> None:
    assert {(("run",), "--backbone"), (("compare",), "A B"), (("leaderboard",), "--html")} <= {v[:2] for v in VALUES}


@pytest.mark.parametrize(("path", "called", "words"), VALUES, ids=lambda value: "".join(value) or "-")
def test_an_empty_value_is_a_wrong_command_line(path: tuple[str, ...], called: str, words: list[str]) -> None:
    result = CliRunner().invoke(root, [*path, *words], prog_name="ddbench")
    assert result.exit_code == 2
    assert f"Error: {called} has an empty value, as from a shell's variable that is not set." in result.stderr
    assert f"Usage: ddbench {' '.join(path)} " in result.stderr
    assert result.stdout == ""


def test_help_is_help_whatever_else_is_said() -> None:
    result = CliRunner().invoke(root, ["run", "--backbone", "", "--help"])
    assert result.exit_code == 0
    assert "Usage:" in result.stdout


@pytest.mark.parametrize("name", ["preset", "backbone", "pixels", "precision"])
def test_an_empty_name_is_nobodys_in_a_file_of_runs_too(name: str) -> None:
    with pytest.raises(ConfigError, match="''"):
        foresee(Asked("dm", "digits", **{name: ""}))  # type: ignore[arg-type]
