"""The command line. A command parses, calls one library function and prints.

Modules of this package import click and nothing heavy, so that help and lists answer at once.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import signal
import sys
import warnings
from collections.abc import Mapping
from io import TextIOWrapper
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

import click

from ddbench.errors import DdbenchError, closest
from ddbench.runs.signals import EXIT_CODES, Interrupted, heeded, importing
from ddbench.text import printable

COMPLETION = "_DDBENCH_COMPLETE"  # what a shell sets that asks how a command line goes on


class Group(click.Group):
    """A group that imports a command when it is asked for. `homes` maps a command's name to "module:attribute"."""

    def __init__(self, *args: Any, homes: Mapping[str, str], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.homes = homes

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.homes)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in self.homes:
            return None
        module, _, attribute = self.homes[cmd_name].partition(":")
        command: click.Command = getattr(importlib.import_module(module), attribute)
        if COMPLETION in os.environ:
            from ddbench.cli.completing import offer_names

            offer_names(command, f"{ctx.command_path} {cmd_name}".partition(" ")[2])
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args[0] not in self.homes and not args[0].startswith("-"):
            ctx.fail(f"There is no command {args[0]!r}. {closest(args[0], list(self.homes))}".rstrip())
        name, command, rest = super().resolve_command(ctx, args)
        if command is not None and not ctx.resilient_parsing:
            _refuse_empty(command.context_class(command, parent=ctx, info_name=name), rest)
        return name, command, rest


def _refuse_empty(ctx: click.Context, args: list[str]) -> None:
    """Raises: click.UsageError for an option or an argument that was given as "".

    Before values are converted: an empty path would be the folder in which we are, and an empty name the default.
    """
    command = ctx.command
    try:
        given, _, params = command.make_parser(ctx).parse_args(list(args))
    except click.UsageError:
        return  # said by the command itself, with the right usage
    if any(param.is_eager and given.get(param.name or "") for param in params):
        return  # help, which needs no values
    for param in dict.fromkeys(params):
        value = given.get(param.name or "")
        if "" in (value if isinstance(value, list | tuple) else [value]):
            optional = "" if param.required else ", or leave it out"
            what = param.opts[0] if isinstance(param, click.Option) else param.make_metavar(ctx).strip("[].")
            raise click.UsageError(
                f"{what} has an empty value, as from a shell's variable that is not set. Give it one{optional}.", ctx
            )


class Root(Group):
    """The outermost group, where errors become messages."""

    def invoke(self, ctx: click.Context) -> Any:
        # torch says this of its own forward derivatives; nobody who runs a method can do anything about it.
        warnings.filterwarnings("ignore", r"`torch\.jit\.script` is deprecated", FutureWarning)
        try:
            return super().invoke(ctx)
        except DdbenchError as error:
            if os.environ.get("DDBENCH_TRACEBACK"):
                raise
            message, code = str(error), error.exit_code
        except Interrupted as stop:
            message, code = str(stop), stop.exit_code
        except KeyboardInterrupt:
            message, code = "stopped by Ctrl-C.", EXIT_CODES[signal.SIGINT]
        except OSError as error:
            from ddbench.files import disk_is_full, of_the_disk

            said = of_the_disk(error)
            if said is None and disk_is_full(error):
                said = f"output could not be written: {error.strerror}."
            if said is None or os.environ.get("DDBENCH_TRACEBACK"):
                raise
            message, code = said, 1
            if not error.filename and sys.stdout is sys.__stdout__ and sys.stdout is not None:
                # What could not be written would be tried again at the exit, whose code says so instead.
                with contextlib.suppress(OSError, ValueError):
                    sys.stdout.close()
        with contextlib.suppress(OSError):  # a terminal that was closed hears nothing, and the code says it too
            click.echo(f"Error: {printable(message, lines=True)}", err=True)
        ctx.exit(code)


@click.group(
    cls=Root,
    homes={
        "run": "ddbench.cli.run:run",
        "prepare": "ddbench.cli.run:prepare",
        "evaluate": "ddbench.cli.evaluate:evaluate",
        "measure": "ddbench.cli.measure:measure",
        "runs": "ddbench.cli.runs:runs",
        "inspect": "ddbench.cli.inspect:inspect",
        "export": "ddbench.cli.export:export",
        "data": "ddbench.cli.data:data",
        "sets": "ddbench.cli.sets:sets",
        "list": "ddbench.cli.show:list_",
        "show": "ddbench.cli.show:show",
        "new": "ddbench.cli.new:new",
        "check": "ddbench.cli.check:check",
        "sweep": "ddbench.cli.sweep:sweep",
        "leaderboard": "ddbench.cli.leaderboard:leaderboard",
        "compare": "ddbench.cli.compare:compare",
        "reproduce": "ddbench.cli.reproduce:reproduce",
        "bench": "ddbench.cli.bench:bench",
    },
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(package_name="ddbench", message="%(prog)s %(version)s")
def root() -> None:
    """Condense image datasets and say honestly how well each method does it.

    Results go to stdout, progress to stderr.
    """


def _terminated(number: int, frame: FrameType | None) -> NoReturn:
    signal.signal(number, signal.SIG_IGN)  # `timeout` sends it twice
    which = signal.Signals(number)
    why = f"stopped by {which.name}. Run the same command again."
    if importing(frame):
        with contextlib.suppress(OSError):
            click.echo(f"Error: {why}", err=True)
        os._exit(EXIT_CODES[which])
    raise Interrupted(why, which)


def _interrupted(number: int, frame: FrameType | None) -> NoReturn:
    if importing(frame):
        click.echo("Error: stopped by Ctrl-C.", err=True)
        os._exit(EXIT_CODES[signal.SIGINT])
    raise KeyboardInterrupt


def _prepare_streams() -> None:
    """Characters that a terminal's encoding lacks are replaced, not an error; what was closed takes what it gets."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, Path(os.devnull).open("w", encoding="utf-8"))  # noqa: SIM115 - as long as we live
        elif isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace" if name == "stderr" else "replace")


def main() -> None:
    """The program `ddbench`."""
    _prepare_streams()
    # Ctrl-C is heard as before, but for half-imported modules, which swallow it or break.
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, _interrupted)
    # While a run is at work, its own handler saves first.
    for number in heeded():
        if number is not signal.SIGINT:
            signal.signal(number, _terminated)
    root(prog_name="ddbench")
