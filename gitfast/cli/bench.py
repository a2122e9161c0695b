"""``gitfast bench kernels``: how fast the kernels are here, beside other ways to compute the same."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from gitfast.cli import common

_EXAMPLE = """\
  gitfast bench kernels
  gitfast bench kernels --kernel linear --model base --threads 2 --plot roofline.png
  gitfast bench kernels --device cuda --json kernels.json"""


def add_parser(commands: Any) -> None:
    parser = common.add_command(
        commands, "bench", run, help="Time the kernels beside torch, after a check against float64.", example=_EXAMPLE
    )
    parser.add_argument("what", choices=["kernels"], help="what to time")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"], help="where (default: cpu)")
    parser.add_argument("--kernel", nargs="+", metavar="NAME", help="only these (default: all of the device)")
    parser.add_argument(
        "--model", nargs="+", metavar="NAME", help="shapes of base, large, vqa, video (default: all four)"
    )
    parser.add_argument("--rounds", type=common.positive, default=9, metavar="N", help="of turns (default: 9)")
    parser.add_argument("--threads", type=common.positive, metavar="N", help="on the cpu (default: all CPUs)")
    parser.add_argument("--json", metavar="FILE", help="write machine, ceilings and every row; - prints them instead")
    parser.add_argument("--plot", type=Path, metavar="FILE.png", help="draw a roofline; needs matplotlib")


def run(args: argparse.Namespace) -> int:
    from gitfast.bench import roofline
    from gitfast.bench.devices import open_bench
    from gitfast.bench.report import as_json, headline, line, summary
    from gitfast.bench.run import Failure, run_cases, start

    if args.plot:
        roofline.import_pyplot()  # what is missing is said before minutes of work
    bench = open_bench(args.device, args.kernel, args.model, args.threads)
    report = start(bench, args.rounds)
    text = sys.stderr if args.json == "-" else sys.stdout
    print(*headline(report), sep="\n", file=text, flush=True)
    for outcome in run_cases(bench, report):
        if isinstance(outcome, Failure):
            print(f"gitfast: {outcome.case}: {outcome.problem}; not timed", file=sys.stderr, flush=True)
            continue
        print(*map(line, outcome), sep="\n", file=text, flush=True)
        if args.json and args.json != "-":  # after each case: a run that is stopped keeps what it has
            Path(args.json).write_text(as_json(report) + "\n", encoding="utf-8")
    print(*summary(report), sep="\n", file=text)
    if args.json == "-":
        print(as_json(report))
    if args.plot and report.rows:
        roofline.draw(report, args.plot)
    return 1 if report.failed else 0
