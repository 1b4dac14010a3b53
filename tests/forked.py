"""A Python in whose processes everything is imported already: `forked_python` of tests/conftest.py.

Most of a short process of ddbench is importing torch and what comes with it. One process, the server, does that once;
the command that stands for Python hands its arguments, folder, environment and open files to the server, which forks.
Signals, exit codes and the end of stdin go through as they are, so that for whoever starts it the command is the
process. What is about starting up itself needs the real Python.

    forked.py serve SOCKET           until stdin ends
    forked.py start SOCKET [-OPTION ...] -m MODULE [ARGUMENT ...]
"""

import json
import os
import select
import signal
import socket
import sys
import time

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR2)
EVERY_SECONDS = 0.02


def start(path: str, arguments: list[str]) -> None:
    """What a process of Python would do; ends as that one does."""
    ignored = [number for number in SIGNALS if signal.getsignal(number) is signal.SIG_IGN]
    heard = set(SIGNALS) - set(ignored)
    signal.pthread_sigmask(signal.SIG_BLOCK, heard)
    at = arguments.index("-m")
    order = {
        "module": arguments[at + 1],
        "arguments": arguments[at + 2 :],
        "folder": os.getcwd(),  # noqa: PTH109 - without pathlib it starts in a moment
        "environment": dict(os.environ),
        "ignored": ignored,
    }
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(path)
    # A file that is closed here, as `2>&-` does it, is closed there.
    files = [number for number in (0, 1, 2) if _is_open(number)]
    socket.send_fds(connection, [json.dumps(files).encode().ljust(16)], files)
    connection.sendall(json.dumps(order).encode() + b"\n")
    answers = connection.makefile("r")
    pid = int(answers.readline())
    while not select.select([connection], [], [], 0)[0]:
        came = signal.sigtimedwait(heard, EVERY_SECONDS)
        if came is not None:
            os.kill(pid, came.si_signo)
    status = int(answers.readline())
    if status < 0:
        if -status != signal.SIGKILL:
            signal.signal(-status, signal.SIG_DFL)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {-status})
        os.kill(os.getpid(), -status)
    os._exit(status)


def _is_open(number: int) -> bool:
    try:
        os.fstat(number)
    except OSError:
        return False
    return True


def serve(path: str) -> None:
    """Import, listen, and fork for everyone who comes."""
    _import_everything()
    # What the terminal sends to everyone is for those who started the processes.
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen()
    print("ready", flush=True)
    while sys.stdin not in (found := select.select([listener, sys.stdin], [], [])[0]):
        if listener in found:
            connection, _ = listener.accept()
            if os.fork() == 0:
                listener.close()
                # Processes that it starts are as quick.
                sys.executable = os.path.join(os.path.dirname(path), "python")  # noqa: PTH118, PTH120
                _attend(connection)
            connection.close()
        _reap()
    _reap()
    os._exit(0)  # taking down the interpreter would only take time


def _reap() -> None:
    """Processes that have ended; the time that they took is then counted as this one's."""
    while True:
        try:
            pid, _ = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if not pid:
            return


def _import_everything() -> None:
    """By a run as small as one can be: what it imports late is imported then."""
    import tempfile
    import warnings
    from pathlib import Path

    import torch

    from ddbench.runs.resolving import Asked, resolve_spec
    from ddbench.runs.runner import RunOptions, run

    torch.set_num_threads(1)
    # Torch says this to itself on the first forward-mode derivative of a process.
    warnings.filterwarnings("ignore", ".torch.jit.script. is deprecated", FutureWarning)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        protocol = root / "tiny.toml"
        protocol.write_text('name = "tiny"\nbackbones = ["mlp"]\nstudents = 1\n[options]\nsteps = 1\nbatch = 4\n')
        asked = Asked(
            "dm", "digits", ipc=1, backbone="mlp", protocols=[str(protocol)], options={"iterations": 1, "batch_real": 4}
        )
        run(resolve_spec(asked, root), RunOptions(root=root, data_root=root, device=torch.device("cpu")))


def _attend(connection: socket.socket) -> None:
    """Fork once more, for the process itself, and stay to tell how it ends; whoever asked may end before it."""
    head, received, _, _ = socket.recv_fds(connection, 16, 3)
    files = dict(zip(json.loads(head), received, strict=True))
    order = json.loads(connection.makefile("r").readline())
    child = os.fork()
    if child == 0:
        connection.close()
        _become(order, files)
    for descriptor in received:
        os.close(descriptor)
    connection.sendall(b"%d\n" % child)
    while True:
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            connection.sendall(b"%d\n" % os.waitstatus_to_exitcode(status))
            os._exit(0)
        if select.select([connection], [], [], EVERY_SECONDS)[0]:
            # Killed in such a way that it could not pass it on.
            os.kill(child, signal.SIGKILL)
            os._exit(0)


def _become(order: dict, files: dict[int, int]) -> None:
    """The process that was asked for."""
    import runpy

    os.setsid()
    os.chdir(order["folder"])
    os.environ.clear()
    os.environ.update(order["environment"])
    time.tzset()
    for number in (0, 1, 2):
        if number in files:
            os.dup2(files[number], number)
        else:
            os.close(number)
    sys.stdin = open(0, closefd=False) if 0 in files else None  # noqa: SIM115
    sys.stdout = open(1, "w", buffering=1, encoding="utf-8", closefd=False) if 1 in files else None  # noqa: SIM115
    sys.stderr = open(2, "w", buffering=1, encoding="utf-8", closefd=False) if 2 in files else None  # noqa: SIM115
    for number in SIGNALS:
        usual = signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
        signal.signal(number, signal.SIG_IGN if number in order["ignored"] else usual)
    sys.argv = [order["module"], *order["arguments"]]
    code: object = 0
    try:
        runpy.run_module(order["module"], run_name="__main__", alter_sys=True)
    except SystemExit as left:
        code = left.code
    except BaseException:
        import traceback

        traceback.print_exc()
        code = 1
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            stream.flush()
    os._exit(code if isinstance(code, int) else int(code is not None))


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        serve(sys.argv[2])
    else:
        start(sys.argv[2], sys.argv[3:])
