"""How every command starts, prints and ends."""

from __future__ import annotations

import contextlib
import io
import os
import signal
import sys
import typing
from collections.abc import Callable, Iterator, Sequence
from types import FrameType
from typing import Any, NoReturn

import tyro
from rich.console import Console, RenderableType
from rich.markup import escape

from specgym.env.common.errors import SpecGymError

INTERRUPTED = 130
"""exit status after Ctrl-C, by the shells' convention"""
TERMINATED = 143
"""exit status after SIGTERM, by the shells' convention"""


class ReliableConsole(Console):
    """A console that falls silent when its reader goes away, as in `| head -1`, so that the command still ends well."""

    def on_broken_pipe(self) -> None:
        """Sends all further output nowhere."""
        self.quiet = True
        silence(self.file)


console = ReliableConsole(stderr=True)


def say(text: str) -> None:
    """Prints a message to the standard error, never broken into lines."""
    console.print(text, markup=False, highlight=False, soft_wrap=True)


def show(*results: RenderableType, markup: bool = True) -> None:
    """Prints results to the standard output. They have to be in their files before."""
    output = ReliableConsole()
    for result in results:
        output.print(result, markup=markup, highlight=False if isinstance(result, str) else None)


def print_error(error: SpecGymError) -> None:
    """Prints the one message that a failed command ends with."""
    console.print(f"[bold red]error:[/] {escape(str(error))}", highlight=False, soft_wrap=True)


def silence(stream: typing.IO[str]) -> None:
    """Sends what is still to be written to a stream nowhere."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def main(command: Callable[[Any], int], arguments: Sequence[str] | None = None) -> NoReturn:
    """Parses the command line into the options of `command`, runs it and exits with its status.

    An error that the user can correct is printed as one message, with status 2. Ctrl-C ends with status 130 and
    SIGTERM with 143, after the command has kept what it has.

    Args:
        command: function of a script; the type of its parameter `options` describes the command line.
        arguments: the command line; by default this process's.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # one "τ" that a stream cannot encode must not cost the other results
            stream.reconfigure(errors="replace")
    with _terminated_like_interrupted() as terminated:
        try:
            status = command(_parse(command, arguments))
        except SpecGymError as error:
            print_error(error)
            status = 2
        except KeyboardInterrupt:
            say("Interrupted.")
            status = INTERRUPTED
    sys.exit(TERMINATED if terminated and status == INTERRUPTED else status)


@contextlib.contextmanager
def _terminated_like_interrupted() -> Iterator[list[int]]:
    """Handles SIGTERM like Ctrl-C within the block. The list is empty until SIGTERM comes."""
    received: list[int] = []
    owner = os.getpid()

    def stop(number: int, frame: FrameType | None) -> None:
        if os.getpid() != owner:  # a forked worker keeps nothing
            os._exit(TERMINATED)
        received.append(number)
        interrupt = signal.getsignal(signal.SIGINT)  # work that must stay whole holds interrupts back
        if callable(interrupt):
            interrupt(number, frame)
        else:
            raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield received
    finally:
        signal.signal(signal.SIGTERM, before)


def _parse(command: Callable[[Any], int], arguments: Sequence[str] | None) -> object:
    """Reads the options from the command line. An error of their own is raised: tyro would frame and break its lines.

    Raises:
        SpecGymError: a value outside its range.
    """
    options, name = typing.get_type_hints(command)["options"], command.__name__.replace("_", "-")
    errors = io.StringIO()
    try:
        with contextlib.redirect_stderr(errors):
            return typing.cast(object, tyro.cli(options, prog=f"specgym {name}", args=arguments))
    except SystemExit as ended:
        cause: BaseException | None = ended
        while cause is not None:
            if isinstance(cause, SpecGymError):
                raise cause from None
            cause = cause.__context__
        sys.stderr.write(errors.getvalue())
        raise
