"""The ``gitfast`` command."""

from __future__ import annotations

import argparse
import io
import os
import sys
from collections.abc import Sequence

from gitfast import GitfastError, __version__
from gitfast.cli import answer, bench, caption, convert, evaluate, info, serve, video

_COMMANDS = (caption, answer, video, serve, evaluate, info, convert, bench)


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command. Returns the exit code: 0, or 1 when an input or the model is bad, 130 at Ctrl-C."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # file names may hold bytes that are no text
            stream.reconfigure(errors="backslashreplace")
    args = _parser().parse_args(argv)
    try:
        code: int = args.run(args)
        sys.stdout.flush()
    except (GitfastError, ValueError) as error:  # ValueError: an argument does not suit the model
        print(f"gitfast: {error}", file=sys.stderr)
        return 1
    except BrokenPipeError:  # the reader of our output left; nothing may be written to it at exit either
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        print("gitfast: interrupted", file=sys.stderr)
        return 130
    return code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="gitfast",
        description="Captions, answers and video with Microsoft's GIT models.",
        epilog="example: gitfast caption --model microsoft/git-base-coco photo.jpg",
    )
    parser.add_argument("--version", action="version", version=f"gitfast {__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    for command in _COMMANDS:
        command.add_parser(commands)
    return parser
