"""``gitfast video``: captions of clips, and questions about them."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from typing import Any

from gitfast.cli import common

_EXAMPLE = """\
  gitfast video clip.mp4
  gitfast video --model microsoft/git-base-msrvtt-qa clip.mp4 -q "what is the man doing?" """


def add_parser(commands: Any) -> None:
    parser = common.add_command(
        commands, "video", run, help="Write captions of videos, or answer questions about them.", example=_EXAMPLE
    )
    common.add_input_arguments(parser, "video or animated image")
    parser.add_argument(
        "-q", "--question", action="append", metavar="TEXT", help="asked of every video; may be repeated"
    )
    common.add_model_arguments(parser, "git-tiny-video")
    common.add_generation_arguments(parser)


def run(args: argparse.Namespace) -> int:
    files = common.find_files(args.paths, common.VIDEO_SUFFIXES, recursive=args.recursive)
    model = common.load_model(args)
    if not model.config.is_video:
        raise ValueError(f"{model.name}: reads single images, not clips: use gitfast caption or gitfast answer")
    options = common.generation_options(args)

    def run_all(files: Sequence[str]) -> Iterator[list[common.Result]]:
        for file in files:
            if args.question:
                yield model.answer(file, args.question, on_error="return", **options)
            else:
                yield [model.caption(file, on_error="return", **options)]

    return common.run_files(files, run_all, as_json=args.json, questions=args.question)
