"""``gitfast video``: captions of clips or questions about them, with a video model unless another is named."""

from __future__ import annotations

import argparse
from typing import Any

from gitfast.cli import answer, caption, common, files
from gitfast.cli.generation import add_generation_arguments

_EXAMPLE = """\
  gitfast video --model base-vatex clip.mp4
  gitfast video --model base-msrvtt-qa clip.mp4 -q "what is the man doing?" """


def add_parser(commands: Any) -> None:
    parser = common.add_command(
        commands, "video", run, help="Write captions of videos, or answer questions about them.", example=_EXAMPLE
    )
    parser.add_argument("--prompt", metavar="TEXT", help="how the captions begin")
    parser.add_argument(
        "-q", "--question", action="append", metavar="TEXT", help="asked of every video; may be repeated"
    )
    files.add_input_arguments(parser, "video or animated image")
    files.add_output_arguments(parser)
    common.add_model_arguments(parser, "git-tiny-video")
    add_generation_arguments(parser)


def run(args: argparse.Namespace) -> int:
    files.check(args)
    if args.question and args.prompt is not None:
        raise files.UsageError("--prompt, --question: expected one of them")
    model = common.load_model(args)
    if not model.config.is_video:
        raise ValueError(f"{model.name}: reads single images, not clips: use gitfast caption or gitfast answer")
    return answer.answer_files(args, model) if args.question else caption.caption_files(args, model)
