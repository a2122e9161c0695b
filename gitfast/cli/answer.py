"""``gitfast answer``: questions about images and clips."""

from __future__ import annotations

import argparse
import functools
from typing import Any

from gitfast import Model
from gitfast.cli import common, files
from gitfast.cli.generation import add_generation_arguments, generation_options

_EXAMPLE = """\
  gitfast answer --model base-vqav2 photo.jpg -q "how many dogs are there?" -q "what color is the sky?"
  gitfast answer --model base-vqav2 photos/ -q "is this indoors?" --out answers.jsonl"""


def add_parser(commands: Any) -> None:
    parser = common.add_command(
        commands, "answer", run, help="Answer questions about images or clips.", example=_EXAMPLE
    )
    parser.add_argument(
        "-q", "--question", action="append", required=True, metavar="TEXT", help="asked of every input; may be repeated"
    )
    files.add_input_arguments(parser, "image or video")
    files.add_output_arguments(parser)
    common.add_model_arguments(parser, "git-tiny")
    add_generation_arguments(parser)


def run(args: argparse.Namespace) -> int:
    files.check(args)
    return answer_files(args, common.load_model(args))


def answer_files(args: argparse.Namespace, model: Model) -> int:
    """Run the questions of the command line over its inputs. Returns the exit code."""
    if len(set(args.question)) < len(args.question):
        raise files.UsageError("--question: the same one twice")
    options = generation_options(args)
    compute = functools.partial(model.answer_each, questions=args.question, on_error="return", **options)
    return files.run_files(args, model, compute, args.question)
