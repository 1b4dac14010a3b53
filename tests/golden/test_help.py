"""The help of every command, pinned. Run with UPDATE_GOLDEN=1 to write what it is now, and read the difference."""

import os
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from ddbench.cli import root

FOLDER = Path(__file__).parent / "help"


def commands(command: click.Command, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    yield path
    if isinstance(command, click.Group):
        for name in command.list_commands(click.Context(command)):
            found = command.get_command(click.Context(command), name)
            assert found is not None
            yield from commands(found, (*path, name))


ALL = list(commands(root))


@pytest.mark.parametrize("path", ALL, ids=lambda path: " ".join(path) or "ddbench")
def test_help_is_as_committed(path: tuple[str, ...]) -> None:
    result = CliRunner(env={"DDBENCH_DATA": None, "DDBENCH_RUNS": None, "DDBENCH_SETS": None}).invoke(
        root, [*path, "--help"], prog_name="ddbench", terminal_width=100
    )
    assert result.exit_code == 0, result.output
    file = FOLDER / f"{'-'.join(path) or 'ddbench'}.txt"
    if os.environ.get("UPDATE_GOLDEN"):
        file.write_text(result.output)
    assert result.output == file.read_text()


def test_no_pinned_help_belongs_to_a_command_that_is_gone() -> None:
    assert {file.stem for file in FOLDER.glob("*.txt")} == {"-".join(path) or "ddbench" for path in ALL}


@pytest.mark.parametrize("path", ALL, ids=lambda path: " ".join(path) or "ddbench")
def test_every_option_and_command_is_explained(path: tuple[str, ...]) -> None:
    command: click.Command = root
    for name in path:
        assert isinstance(command, click.Group)
        found = command.get_command(click.Context(command), name)
        assert found is not None
        command = found
    assert command.help
    for parameter in command.params:
        if isinstance(parameter, click.Option) and not isinstance(parameter.type, click.Choice):
            assert parameter.help, parameter.name
