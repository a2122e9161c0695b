"""The ``gitfast`` command."""

from __future__ import annotations

import argparse
import errno
import io
import os
import signal
import sys
from collections.abc import Sequence
from typing import Any

from gitfast import GitfastError, __version__
from gitfast.cli import answer, bench, caption, convert, evaluate, info, serve, video
from gitfast.cli.console import Console
from gitfast.cli.files import UsageError
from gitfast.pipeline.folders.names import printable
from gitfast.pipeline.folders.run import Interrupted
from gitfast.standard_streams import flush_or_discard

_COMMANDS = (caption, answer, video, serve, evaluate, info, convert, bench)


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command.

    Returns:
        The exit code: 0; 1 when an input, the model or an output is bad; 2 for wrong usage; 130 after Ctrl-C and 143
        after SIGTERM.
    """
    _prepare_streams()
    try:
        return _run(argv)
    finally:
        flush_or_discard(sys.stderr)  # what could not be said is not tried again either


def _run(argv: Sequence[str] | None) -> int:
    try:
        args = _parser().parse_args(_with_dashes(sys.argv[1:] if argv is None else argv))
        code: int = args.run(args)
        sys.stdout.flush()
    except UsageError as error:
        args.parser.error(printable(str(error)))
    except (GitfastError, ValueError) as error:  # ValueError: an argument does not suit the model
        return _fail(str(error))
    except BrokenPipeError:  # the reader of our output left
        flush_or_discard(sys.stdout)
        return 1
    except OSError as error:
        return _fail(f"{error.filename or 'standard output'}: {error.strerror or error}")
    except KeyboardInterrupt as error:
        _fail("interrupted")
        return 128 + (error.signal if isinstance(error, Interrupted) else signal.SIGINT)
    return code


def _fail(message: str) -> int:
    flush_or_discard(sys.stdout)
    Console().message(message)
    return 1


def _prepare_streams() -> None:
    """Stand in for closed streams, and escape names that are not valid text."""
    for descriptor in range(3):  # a file that is opened must not become standard output
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    if sys.stdout is None:
        sys.stdout = _ClosedStream()
    if sys.stderr is None:
        sys.stderr = _ClosedStream()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


class _ClosedStream(io.StringIO):
    """A stand-in for a standard stream that was closed before the start."""

    def write(self, text: str) -> int:
        raise OSError(errno.EBADF, os.strerror(errno.EBADF))


def _with_dashes(argv: Sequence[str]) -> list[str]:
    """Rewrite options spelled as in trainers' scripts, --batch_size, to ours: --batch-size."""
    changed, plain = [], False
    for argument in argv:
        plain = plain or argument == "--"
        if argument.startswith("--") and not plain:
            name, equals, value = argument.partition("=")
            argument = name.replace("_", "-") + equals + value
        changed.append(argument)
    return changed


class _Parser(argparse.ArgumentParser):
    """A parser whose help and version are output like any other: argparse says nothing where they cannot be written."""

    def _print_message(self, message: str, file: Any = None) -> None:
        if file is not sys.stdout:
            super()._print_message(message, file)
        elif message:
            file.write(message)
            file.flush()


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="gitfast",
        description="Captions, answers and video with Microsoft's GIT models.",
        epilog="example: gitfast caption --model microsoft/git-base-coco photo.jpg",
    )
    parser.add_argument("--version", action="version", version=f"gitfast {__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    for command in _COMMANDS:
        command.add_parser(commands)
    return parser
