"""Arguments of text generation: the options of ``Model.caption`` that can be written on a command line."""

from __future__ import annotations

import argparse
import math
from typing import Any

from gitfast.cli import common
from gitfast.pipeline.options import PRESETS

_INTEGERS = {
    "min_new_tokens": "no end of text before",
    "top_k": "draw from the N likeliest tokens (default: 0, from all)",
    "seed": "of the draws",
    "no_repeat_ngram_size": "never write N tokens twice in the same order",
}
_NUMBERS = {
    "length_penalty": "above 0 favours long beams (default: 1)",
    "temperature": "below 1 draws likely tokens more often (default: 1)",
    "top_p": "draw from the likeliest tokens that together are as probable (default: 1)",
    "min_p": "draw from tokens at least as probable, beside the likeliest (default: 0)",
    "repetition_penalty": "above 1 avoids tokens that the text has (default: 1)",
}
_OPTIONS = ("max_new_tokens", "num_beams", "num_return_sequences", "do_sample", "preset", "num_frames", "sampling")


def add_generation_arguments(parser: argparse.ArgumentParser) -> None:
    """Add one argument per option; those that are not given are left to the model."""
    group = parser.add_argument_group("text", "as in Python, and in transformers' generate()")
    add = group.add_argument
    add(
        "--max-new-tokens",
        "--max-length",
        type=common.positive,
        metavar="N",
        help="end a text here (default: 50)",
    )
    add(
        "--beams",
        "--num-beams",
        dest="num_beams",
        type=common.positive,
        metavar="N",
        help="beams (default: 1, greedy search)",
    )
    add("--num-return-sequences", type=common.positive, metavar="N", help="texts per input; lines of JSON hold them")
    add("--preset", choices=PRESETS, help="paper: the search behind the published scores, 4 beams")
    add("--do-sample", action="store_true", default=None, help="draw tokens instead of searching for the likeliest")
    for name, help_ in _INTEGERS.items():
        add(f"--{name.replace('_', '-')}", type=common.natural, metavar="N", help=help_)
    for name, help_ in _NUMBERS.items():
        add(f"--{name.replace('_', '-')}", type=_number, metavar="X", help=help_)
    add("--num-frames", type=common.positive, metavar="N", help="frames taken of a clip (default: the model's)")
    add("--sampling", choices=["uniform", "hf"], help="which frames: evenly, or a window as transformers' example")


def generation_options(args: argparse.Namespace) -> dict[str, Any]:
    """Collect the options that were given."""
    names = (*_OPTIONS, *_INTEGERS, *_NUMBERS)
    return {name: value for name in names if (value := getattr(args, name)) is not None}


def _number(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise argparse.ArgumentTypeError(f"expected a number, got {text!r}")
    return number
