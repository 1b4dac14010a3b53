"""python -m ddbench, and the program `ddbench`."""

import os
import signal


def _stopped_early(number: int, _: object) -> None:
    os.write(2, b"Error: stopped by Ctrl-C.\n" if number == signal.SIGINT else b"Error: stopped by SIGTERM.\n")
    os._exit(130 if number == signal.SIGINT else 75)


def main() -> None:
    """The command line. Until it is there, which takes a moment, a signal ends the process in a sentence."""
    for number in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _stopped_early)
    from ddbench.cli import main

    main()


if __name__ == "__main__":
    main()
