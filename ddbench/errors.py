"""The errors that ddbench raises on purpose.

Each reaches the command line as one message without a traceback. A message says what happened, why it matters and what
to do next, with the values in it. Anything else that is raised is a bug and keeps its traceback.
"""

from typing import TypeVar


class DdbenchError(Exception):
    """What went wrong, in words for the person who ran the command. `exit_code` is that of the command."""

    exit_code = 1


class ConfigError(DdbenchError):
    """An option, a name or a file of settings that cannot be used as it is: the command line is wrong."""

    exit_code = 2


class DataError(DdbenchError):
    """A dataset, an image or a synthetic set that is missing, damaged or not what it says."""


class ArtifactError(DdbenchError):
    """Something expensive that a method needs is missing or damaged."""


class PluginError(DdbenchError):
    """A method, dataset or backbone that cannot be found or does not import."""


class DivergedError(DdbenchError):
    """A loss or a parameter is no longer a finite number."""


class RunError(DdbenchError):
    """A run folder or a record that cannot be used: locked, foreign, incomplete, or the disk is full."""


E = TypeVar("E", bound=DdbenchError)


def mistyped(error: E) -> E:
    """The error with the exit code of a wrong command line: what is named there is not missing, it is nothing."""
    error.exit_code = ConfigError.exit_code
    return error


def closest(name: str, known: "list[str] | tuple[str, ...]") -> str:
    """The sentence "Did you mean 'x'? " for a mistyped name, or nothing where no known name is near.

    Upper and lower case are alike: papers write MTT.
    """
    from difflib import get_close_matches

    lowered = {one.lower(): one for one in reversed(known)}
    near = get_close_matches(name.lower(), list(lowered), n=1, cutoff=0.6)
    return f"Did you mean {lowered[near[0]]!r}? " if near else ""
