"""``gitfast caption``: captions of images and clips."""

from __future__ import annotations

import argparse
from collections.abc import Generator, Iterable
from typing import Any

from gitfast import Model
from gitfast.cli import common, files
from gitfast.cli.generation import add_generation_arguments, generation_options
from gitfast.results import Result

_EXAMPLE = """\
  gitfast caption --model base-coco photo.jpg
  gitfast caption --model base-coco -r photos/ --out photos/metadata.jsonl     stop it, and it goes on from there
  gitfast caption --model base-coco --output txt --existing skip training/     a .txt beside each image
  find photos -name '*.jpg' -print0 | gitfast caption --files-from - --json"""


def add_parser(commands: Any) -> None:
    parser = common.add_command(commands, "caption", run, help="Write captions of images or clips.", example=_EXAMPLE)
    parser.add_argument("--prompt", metavar="TEXT", help="how the captions begin")
    files.add_input_arguments(parser, "image or video")
    files.add_output_arguments(parser)
    common.add_model_arguments(parser, "git-tiny")
    add_generation_arguments(parser)


def run(args: argparse.Namespace) -> int:
    files.check(args)
    return caption_files(args, common.load_model(args))


def caption_files(args: argparse.Namespace, model: Model) -> int:
    """Caption the inputs of the command line. Returns the exit code."""
    options = generation_options(args)

    def compute(sources: Iterable[Any], **reading: Any) -> Generator[list[Result], None, None]:
        for result in model.caption_each(sources, args.prompt, on_error="return", **reading, **options):
            yield [result]

    return files.run_files(args, model, compute, [])
