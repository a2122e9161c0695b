"""Try hostile inputs by hand: python tests/fuzz/run.py [TARGET ...] --seconds 60

Each target runs in a process of its own. Inputs that break a promise, or end the process, are kept in a folder, to be
tried again with --input.
"""

from __future__ import annotations

import argparse
import hashlib
import logging
import os
import resource
import sys
import tempfile
import traceback
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from support.fuzz.loop import Finding, Keeper, Outcome, attempt, bounded, fuzz, warm_up
from support.fuzz.targets import TARGETS

MAX_FINDINGS = 10  # of one target: more of them are mostly the same
ADDRESS_SPACE = 8 << 30
HANG_S = 120  # of CPU: what no signal handler of Python ends, the system does


def main() -> int:
    """Run the targets one after another; return 1 if one of them found something."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=f"one of {', '.join(TARGETS)}; all, if none")
    parser.add_argument("--seconds", type=float, help="time for each target")
    parser.add_argument("--executions", type=int, help="inputs for each target")
    parser.add_argument("--seed", type=int, default=0, help="where the random numbers begin")
    parser.add_argument("--findings", type=Path, default=Path("fuzz-findings"), help="folder of inputs that are kept")
    parser.add_argument("--input", type=Path, help="try this file alone, with one target")
    args = parser.parse_args()
    if unknown := sorted(set(args.targets) - set(TARGETS)):
        parser.error(f"no such target: {', '.join(unknown)}")
    if args.input is not None:
        if len(args.targets) != 1:
            parser.error("--input takes one target")
        return _try_again(args.targets[0], args.input.read_bytes())
    if args.seconds is None and args.executions is None:
        args.seconds = 60.0
    failed = 0
    for name in args.targets or TARGETS:
        failed |= _run(name, args)
    return failed


def _run(name: str, args: argparse.Namespace) -> int:
    """Run one target in a child; keep the input that was in progress if the child is ended."""
    with tempfile.TemporaryDirectory(dir=_memory_folder()) as folder:
        kept = Path(folder) / "input"
        keeper = Keeper(kept)
        sys.stdout.flush()
        child = os.fork()
        if child == 0:
            code = 1
            try:
                code = _child(name, args, Path(folder) / "target", keeper)
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stdout.flush()
                os._exit(code)
        _, status = os.waitpid(child, 0)
        code = os.waitstatus_to_exitcode(status)
        if code < 0:
            print(f"{name}: ended by signal {-code}; {_save(args.findings, name, Keeper.kept(kept))}", flush=True)
        return int(code != 0)


def _child(name: str, args: argparse.Namespace, folder: Path, keeper: Keeper) -> int:
    folder.mkdir()
    logging.disable(logging.WARNING)  # what parsers of forms say of each
    if "san.so" not in os.environ.get("LD_PRELOAD", ""):  # sanitizers reserve terabytes
        resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE, ADDRESS_SPACE))
    target = TARGETS[name](folder)

    def on_finding(finding: Finding) -> None:
        print(f"{name}: {finding}; {_save(args.findings, name, finding.data)}", flush=True)
        if finding.__cause__ is not None:
            traceback.print_exception(finding.__cause__)

    total = fuzz(
        target,
        executions=args.executions,
        seconds=args.seconds,
        seed=args.seed,
        keeper=keeper,
        on_finding=on_finding,
        most_findings=MAX_FINDINGS,
        hang_s=HANG_S,
    )
    print(f"{name:>20}: {total.line()}", flush=True)
    return int(bool(total.findings))


def _try_again(name: str, data: bytes) -> int:
    with tempfile.TemporaryDirectory(dir=_memory_folder()) as folder:
        target, outcome = TARGETS[name](Path(folder)), Outcome()
        warm_up(target)
        with bounded() as start_clock:
            start_clock()
            finding = attempt(target, data, outcome)
        if finding is None:
            print("accepted" if outcome.accepted else "refused")
            return 0
        traceback.print_exception(finding.__cause__)
        return 1


def _save(folder: Path, name: str, data: bytes) -> str:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}-{hashlib.sha256(data).hexdigest()[:12]}"
    path.write_bytes(data)
    return f"kept as {path}"


def _memory_folder() -> str | None:
    return "/dev/shm" if os.path.isdir("/dev/shm") else None


if __name__ == "__main__":
    sys.exit(main())
