"""``gitfast answer``: questions about images."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from typing import Any

from gitfast.cli import common

_EXAMPLE = """\
  gitfast answer photo.jpg -q "how many dogs are there?" -q "what color is the sky?"
  gitfast answer --model microsoft/git-base-vqav2 photos/ -q "is this indoors?" """


def add_parser(commands: Any) -> None:
    parser = common.add_command(commands, "answer", run, help="Answer questions about images.", example=_EXAMPLE)
    common.add_input_arguments(parser, "image")
    parser.add_argument(
        "-q", "--question", action="append", required=True, metavar="TEXT", help="asked of every image; may be repeated"
    )
    common.add_model_arguments(parser, "git-tiny")
    common.add_generation_arguments(parser)


def run(args: argparse.Namespace) -> int:
    files = common.find_files(args.paths, common.IMAGE_SUFFIXES, recursive=args.recursive)
    model = common.load_model(args)
    options = common.generation_options(args)

    def run_all(files: Sequence[str]) -> Iterator[list[common.Result]]:
        return model.answer_each(files, args.question, on_error="return", **options)

    return common.run_files(files, run_all, as_json=args.json, questions=args.question)
