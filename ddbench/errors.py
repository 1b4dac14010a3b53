"""The errors that ddbench raises on purpose.

Each reaches the command line as one message without a traceback. A message says what happened, why it matters and what
to do next, with the values in it. Anything else that is raised is a bug and keeps its traceback.
"""


class DdbenchError(Exception):
    """What went wrong, in words for the person who ran the command."""


class ConfigError(DdbenchError):
    """An option, a name or a file of settings that cannot be used as it is."""


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


def closest(name: str, known: "list[str] | tuple[str, ...]") -> str:
    """The sentence "Did you mean 'x'? " for a mistyped name, or nothing where no known name is near.

    Upper and lower case are alike: papers write MTT.
    """
    from difflib import get_close_matches

    lowered = {one.lower(): one for one in reversed(known)}
    near = get_close_matches(name.lower(), list(lowered), n=1, cutoff=0.6)
    return f"Did you mean {lowered[near[0]]!r}? " if near else ""
