"""``gitfast bench``: the speed of kernels and of whole captions on this machine, beside their peers."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from gitfast.cli import common

_EXAMPLE = """\
  gitfast bench kernels --kernel linear --model git-base --threads 2 --plot roofline.png
  gitfast bench kernels --device cuda --json kernels.json
  gitfast bench caption --dtype bfloat16 int8 --threads 1 2 --json captions.json
  gitfast bench caption --model git-large --clients 1 2 4 8 --plot clients.png"""
_CAPTION_EXAMPLE = """\
  gitfast bench caption
  gitfast bench caption --model microsoft/git-base-coco --dtype float32 int8 --batch 1 8
  gitfast bench caption --way gitfast:int8 transformers:float32 --clients 1 2 4 8 --plot clients.png
  gitfast bench caption --way gitfast:float32 gitfast:int8 --threads 8 --lanes 1 2 8 --clients 1 2 4 8 16
  gitfast bench caption --device cuda --way gitfast:bfloat16 gitfast:bfloat16,decode=persistent"""
_KERNELS_EXAMPLE = """\
  gitfast bench kernels
  gitfast bench kernels --kernel linear --model git-base --threads 2 --plot roofline.png
  gitfast bench kernels --device cuda --json kernels.json"""


def add_parser(commands: Any) -> None:
    parser = common.add_command(commands, "bench", run, help="Time kernels or whole captions.", example=_EXAMPLE)
    benches = parser.add_subparsers(title="what to time", required=True, metavar="WHAT")
    _add_kernels(benches)
    _add_caption(benches)


def _add_kernels(benches: Any) -> None:
    text = "Time the kernels beside torch, after a check against float64."
    parser = common.add_command(benches, "kernels", run_kernels, help=text, example=_KERNELS_EXAMPLE)
    parser.add_argument("--kernel", nargs="+", metavar="NAME", help="only these (default: all of the device)")
    parser.add_argument(
        "--model", nargs="+", metavar="NAME", help="shapes of these published models (default: one of each shape)"
    )
    parser.add_argument("--threads", type=common.positive, metavar="N", help="on the cpu (default: all CPUs)")
    parser.add_argument(
        "--no-compile",
        dest="compiled",
        action="store_false",
        help="not beside torch.compile, which takes minutes",
    )
    _add_shared(parser, "draw a roofline")


def _add_caption(benches: Any) -> None:
    text = "Time whole captions, pixels to token ids, beside other engines, after a check of the tokens."
    parser = common.add_command(benches, "caption", run_caption, help=text, example=_CAPTION_EXAMPLE)
    parser.add_argument(
        "--model",
        default="git-base",
        metavar="NAME",
        help="a published name stands for its shape with random weights, which are as fast as its own; a folder or a "
        "repository for the model itself (default: git-base)",
    )
    parser.add_argument(
        "--way",
        nargs="+",
        metavar="ENGINE:DTYPE",
        help="gitfast, transformers, compiled, openvino, onnxruntime or reference, each with a dtype; the others are "
        "compared to the first (default: gitfast in every dtype of the device, and the peers that are installed)",
    )
    parser.add_argument("--dtype", nargs="+", metavar="NAME", help="only ways of these dtypes")
    parser.add_argument(
        "--threads", nargs="+", type=common.positive, metavar="N", help="on the cpu, one after another (default: all)"
    )
    parser.add_argument(
        "--lanes",
        nargs="+",
        type=common.positive,
        default=[],
        metavar="N",
        help="gitfast with its threads divided among so many lanes, side by side",
    )
    parser.add_argument("--batch", nargs="+", type=common.positive, default=[1], metavar="N", help="images at once")
    parser.add_argument(
        "--clients", nargs="+", type=common.positive, default=[], metavar="N", help="also serve so many callers at once"
    )
    parser.add_argument("--new-tokens", type=_at_least_two, default=20, metavar="N", help="of a caption (default: 20)")
    _add_shared(parser, "draw latency and throughput over clients, or captions")


def _at_least_two(text: str) -> int:
    if common.positive(text) < 2:
        raise argparse.ArgumentTypeError("expected at least 2: the first token and one more")
    return int(text)


def _add_shared(parser: argparse.ArgumentParser, picture: str) -> None:
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"], help="where (default: cpu)")
    parser.add_argument("--rounds", type=common.positive, default=9, metavar="N", help="of turns (default: 9)")
    parser.add_argument(
        "--json",
        metavar="FILE",
        help="write machine, ceilings and every row; to FILE.jsonl a line per row is added; - prints them instead",
    )
    parser.add_argument("--plot", type=Path, metavar="FILE.png", help=f"{picture}; needs matplotlib")


def run(args: argparse.Namespace) -> int:
    """Do nothing; never called: one of the two commands is required."""
    raise AssertionError(args)


class _Output:
    """The outputs of a run. A file that cannot be written is an error before minutes of work."""

    def __init__(self, args: argparse.Namespace) -> None:
        from gitfast.bench import roofline
        from gitfast.bench.report import ReportFile, check_writable

        self._instead, self._plot = args.json == "-", args.plot
        self._file = ReportFile(Path(args.json)) if args.json and not self._instead else None
        self._text = sys.stderr if self._instead else sys.stdout
        if self._plot:
            roofline.import_pyplot()
            check_writable("plot", self._plot)

    def print(self, *lines: str) -> None:
        if lines:
            print(*lines, sep="\n", file=self._text, flush=True)

    def save(self, report: Any, new: Iterable[Any]) -> None:
        if self._file:
            self._file.save(report, new)

    def finish(self, report: Any, draw: Any) -> int:
        from gitfast.bench.report import as_json, naming

        self.save(report, [])
        if self._instead:
            print(as_json(report))
        if self._plot and report.rows:
            with naming("plot", self._plot):
                draw(report, self._plot)
        return 1 if report.failed or not report.rows else 0


def _say_not_measured(reasons: dict[str, str], said: set[str]) -> None:
    """Print what was left out since the last time, and add it to ``said``."""
    for name in reasons:
        if name not in said:
            said.add(name)
            print(f"gitfast: {name} is not measured: {reasons[name]}", file=sys.stderr, flush=True)


def run_kernels(args: argparse.Namespace) -> int:
    from gitfast.bench import roofline
    from gitfast.bench.devices import open_bench
    from gitfast.bench.report import headline, line, summary
    from gitfast.bench.run import Failure, run_cases, start

    output = _Output(args)
    bench = open_bench(args.device, args.kernel, args.model, args.threads, args.compiled)
    report = start(bench, args.rounds)
    output.print(*headline(report))
    said = set(report.not_measured)
    for outcome in run_cases(bench, report):
        _say_not_measured(report.not_measured, said)
        if isinstance(outcome, Failure):
            print(f"gitfast: {outcome.case}: {outcome.problem}; not timed", file=sys.stderr, flush=True)
            output.save(report, [outcome])
            continue
        output.print(*map(line, outcome))
        output.save(report, outcome)
    output.print(*summary(report))
    return output.finish(report, roofline.draw)


def run_caption(args: argparse.Namespace) -> int:
    from gitfast.bench import caption
    from gitfast.bench import caption_report as text
    from gitfast.bench.devices import caption_settings, start_captions
    from gitfast.bench.workload import open_workload

    output = _Output(args)
    settings = caption_settings(
        args.device,
        args.way,
        args.dtype,
        lanes=args.lanes,
        threads=args.threads,
        batches=args.batch,
        clients=args.clients,
        new_tokens=args.new_tokens,
        rounds=args.rounds,
    )
    workload = open_workload(args.model)
    report = start_captions(workload, settings)
    output.print(*text.headline(report))
    said: set[str] = set()
    for outcomes in caption.run(workload, settings, report):
        _say_not_measured(report.not_measured, said)
        for outcome in outcomes:
            if isinstance(outcome, caption.Failure):
                print(f"gitfast: {outcome.way}: {outcome.problem}; not timed", file=sys.stderr, flush=True)
            elif isinstance(outcome, caption.Row):
                output.print(text.line(outcome))
            else:
                if outcome is report.clients[0]:
                    output.print(text.clients_headline())
                output.print(text.clients_line(outcome))
        output.save(report, outcomes)
    return output.finish(report, text.draw)
