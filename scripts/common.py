"""How every command starts, prints and ends."""

from __future__ import annotations

import contextlib
import io
import os
import sys
import threading
import typing
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

import tyro
from rich.console import Console, RenderableType
from rich.markup import escape

from specgym.env.common.errors import ParameterError, SpecGymError, shortened
from specgym.env.common.files import FileWriteError
from specgym.scripts.signals import INTERRUPTED, Interrupts


class ReliableConsole(Console):
    """A console that never ends a command by what it prints.

    It falls silent when its reader goes away, as in `| head -1`, or when its terminal or disk takes no more.

    Attributes:
        failure: why the rest could not be written; None if a reader went away or everything was written.
    """

    failure: OSError | None = None

    def _check_buffer(self) -> None:
        try:
            super()._check_buffer()
        except OSError as error:
            self.failure = error
            self.on_broken_pipe()

    def on_broken_pipe(self) -> None:
        """Sends all further output nowhere."""
        self.quiet = True
        silence(self.file)


console = ReliableConsole(stderr=True)


def say(text: str) -> None:
    """Prints a message to the standard error, never broken into lines."""
    console.print(text, markup=False, highlight=False, soft_wrap=True)


def show(*results: RenderableType, markup: bool = True) -> None:
    """Prints results to the standard output. They have to be in their files before.

    Raises:
        FileWriteError: the standard output takes no more, as on a full disk.
    """
    output = ReliableConsole()
    for result in results:
        output.print(result, markup=markup, highlight=False if isinstance(result, str) else None)
    check_output(output.failure)


def check_output(failure: OSError | None) -> None:
    """Raises `FileWriteError` if writing to the standard output has failed. A reader that went away is no failure."""
    if failure is not None:
        silence(sys.stdout)
        if not isinstance(failure, BrokenPipeError):
            raise FileWriteError(f"Could not write to the standard output: {failure.strerror or failure}.") from failure


def print_error(message: object) -> None:
    """Prints the one message that a failed command ends with."""
    console.print(f"[bold red]error:[/] {escape(str(message))}", highlight=False, soft_wrap=True)


def silence(stream: typing.IO[str]) -> None:
    """Sends what is still to be written to a stream nowhere."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def main(command: Callable[[Any], int], arguments: Sequence[str] | None = None) -> NoReturn:
    """Parses the command line into the options of `command`, runs it and exits with its status.

    An error that the user can correct is printed as one message, with status 2. Ctrl-C ends with status 130, SIGTERM
    with 143 and SIGHUP with 129, after the command has kept what it has.

    Args:
        command: function of a script; the type of its parameter `options` describes the command line.
        arguments: the command line; by default this process's.
    """
    prepare_streams()
    threading.excepthook = _thread_failed
    interrupts = Interrupts(_say_interrupted)
    try:
        status = command(_parse(command, arguments))
        status = interrupts.status if status == INTERRUPTED else status
    except SpecGymError as error:
        print_error(error)
        status = 2
    except (OSError, MemoryError) as error:
        print_error(_described(error))
        status = 2
    except KeyboardInterrupt:
        _say_interrupted()
        status = interrupts.status
    except SystemExit as ended:
        status = typing.cast(int, ended.code or 0)
    interrupts.end(status)
    sys.exit(status)


def _say_interrupted() -> None:
    console.show_cursor()  # a progress bar may have hidden it
    say("Interrupted.")


def _thread_failed(failure: threading.ExceptHookArgs) -> None:
    """Prints one line where TensorBoard's thread could not write, and a traceback for every other error."""
    if isinstance(failure.exc_value, OSError):
        say(f"A thread ended: {_described(failure.exc_value)}")
    else:
        threading.__excepthook__(failure)


def prepare_streams() -> None:
    """Lets a letter that a stream cannot encode, such as "τ", cost no results."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


def _described(error: OSError | MemoryError) -> str:
    """Describes an error of the system. What the commands write is complete or not there, so that work can go on."""
    if isinstance(error, MemoryError):
        return "There is not enough memory. Free some or make the work smaller, then run the command again."
    place = f"{error.filename}: " if error.filename else ""
    message = f"{place}{error.strerror or error}. Repair this and run the command again; what was complete is kept."
    return shortened(message)


def _parse(command: Callable[[Any], int], arguments: Sequence[str] | None) -> object:
    """Reads the options from the command line. An error of their own is raised: tyro would frame and break its lines.

    Raises:
        SpecGymError: a value outside its range, or an argument that is not text.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    for argument in arguments:
        if any("\ud800" <= letter <= "\udfff" for letter in argument):  # bytes that Python could not decode
            shown = argument.encode(errors="surrogateescape")[:60]
            raise ParameterError(f"Expected every argument in UTF-8; got {shown!r}. Write it in UTF-8.")
    options, name = typing.get_type_hints(command)["options"], command.__name__.replace("_", "-")
    errors = io.StringIO()
    try:
        with contextlib.redirect_stderr(errors):
            return typing.cast(object, tyro.cli(options, prog=f"specgym {name}", args=arguments))
    except OSError as error:  # the help is longer than what the standard output takes
        check_output(error)
        sys.exit(0)
    except SystemExit as ended:
        cause: BaseException | None = ended
        while cause is not None:
            if isinstance(cause, SpecGymError):
                raise cause from None
            cause = cause.__context__
        sys.stderr.write(errors.getvalue())
        flush_output()
        raise


def flush_output() -> None:
    """Writes what the standard output still holds. Raises as `check_output`."""
    try:
        if sys.stdout is not None:  # closed by the shell: `>&-`
            sys.stdout.flush()
    except OSError as error:
        check_output(error)
