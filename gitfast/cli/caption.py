"""``gitfast caption``: what images show."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from typing import Any

from gitfast.cli import common

_EXAMPLE = """\
  gitfast caption photo.jpg
  gitfast caption --model microsoft/git-base-coco --json photos/ > captions.jsonl"""


def add_parser(commands: Any) -> None:
    parser = common.add_command(commands, "caption", run, help="Write captions of images.", example=_EXAMPLE)
    common.add_input_arguments(parser, "image")
    parser.add_argument("--prompt", metavar="TEXT", help="how the captions begin")
    common.add_model_arguments(parser, "git-tiny")
    common.add_generation_arguments(parser)


def run(args: argparse.Namespace) -> int:
    files = common.find_files(args.paths, common.IMAGE_SUFFIXES, recursive=args.recursive)
    model = common.load_model(args)
    options = common.generation_options(args)

    def run_all(files: Sequence[str]) -> Iterator[list[common.Result]]:
        for result in model.caption_each(files, prompt=args.prompt, on_error="return", **options):
            yield [result]

    return common.run_files(files, run_all, as_json=args.json)
