"""Runs over folders that are killed, interrupted or out of room: their results, and those of the runs after them."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import time
from pathlib import Path

import pytest

from support.processes import ENVIRONMENT, PYTHON
from support.tiers import slow
from support.tiny_checkpoint import random_image

COMMAND = [*PYTHON, "-m", "gitfast", "caption"]


@pytest.fixture(scope="module")
def many(tmp_path_factory) -> Path:
    """Enough images that a run can be ended in the middle."""
    folder = tmp_path_factory.mktemp("many")
    for i in range(120):
        random_image(i).save(folder / f"{i:03}.png")
    for i in range(0, 120, 17):
        (folder / f"{i:03}.png").write_bytes(b"damaged")
    return folder


@pytest.fixture(scope="module")
def undisturbed(many, checkpoint_folder, tmp_path_factory) -> tuple[bytes, bytes]:
    """Results and errors of a run that nothing ended."""
    folder = tmp_path_factory.mktemp("whole")
    out, errors = folder / "out.jsonl", folder / "errors.jsonl"
    assert start(checkpoint_folder, many, "--out", out, "--errors", errors).wait(120) == 1
    assert len(out.read_bytes().splitlines()) == 112
    return out.read_bytes(), errors.read_bytes()


def start(checkpoint_folder, *arguments, **streams) -> subprocess.Popen[bytes]:
    """Begin the command as a process of its own."""
    streams = {"stderr": subprocess.DEVNULL, "stdout": subprocess.DEVNULL} | streams
    # A test run started in the background ignores Ctrl-C, and its children would inherit that.
    return subprocess.Popen(
        [*COMMAND, "--model", str(checkpoint_folder), "--threads", "1", *map(str, arguments)],
        env=ENVIRONMENT,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        **streams,
    )


class TestEndings:
    @pytest.mark.parametrize(
        ("kills", "output"),
        [
            (3, "jsonl"),
            pytest.param(20, "jsonl", marks=pytest.mark.slow),
            pytest.param(20, "text", marks=pytest.mark.slow),
            pytest.param(10, "txt", marks=pytest.mark.slow),
            pytest.param(10, "overwrite", marks=pytest.mark.slow),
        ],
    )
    @pytest.mark.timeout(1200)
    def test_kills_change_nothing(self, many, undisturbed, checkpoint_folder, tmp_path, kills, output):
        rng = random.Random(kills)
        out, errors = tmp_path / "out", tmp_path / "errors.jsonl"
        kind = "jsonl" if output == "overwrite" else output
        arguments = [many, "--output", kind, "--out", out, "--errors", errors, "--batch-size", 2]
        if output == "overwrite":
            arguments += ["--existing", "overwrite"]
        killed = 0
        for _ in range(kills):
            process = start(checkpoint_folder, *arguments)
            # At some moment after the first result of this run; the next goes on with some left to do.
            before, deadline = size_of(out), time.monotonic() + 60
            while process.poll() is None and size_of(out) == before and time.monotonic() < deadline:
                time.sleep(0.002)
            time.sleep(rng.random() * 0.02)
            process.kill()
            killed += process.wait(60) == -signal.SIGKILL
        assert killed >= min(kills, 2), "no run was killed before its end"
        assert start(checkpoint_folder, *arguments).wait(120) == 1
        if kind == "jsonl":
            assert out.read_bytes() == undisturbed[0]
        else:
            found = [json.loads(line) for line in undisturbed[0].splitlines()]
            if kind == "text":
                expected = [f"{many}/{r['file_name']}\t{r['text']}" for r in found]
                assert out.read_text().splitlines() == expected
            else:
                assert {path.name: path.read_text() for path in out.iterdir()} == {
                    f"{Path(r['file_name']).stem}.txt": r["text"] + "\n" for r in found
                }
        refused = undisturbed[1].splitlines()
        if kind == "text":  # names whole paths, in its errors too
            rows = [json.loads(line) for line in refused]
            refused = [json.dumps(row | {"file_name": f"{many}/{row['file_name']}"}).encode() for row in rows]
        assert sorted(errors.read_bytes().splitlines()) == sorted(refused)

    @pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
    def test_signals_finish_the_batch(self, many, undisturbed, checkpoint_folder, tmp_path, number, code):
        out, errors = tmp_path / "out.jsonl", tmp_path / "errors.jsonl"
        arguments = (many, "--out", out, "--errors", errors, "--batch-size", 4)
        with start(checkpoint_folder, *arguments, stderr=subprocess.PIPE) as process:
            while size_of(out) == 0 and process.poll() is None:
                time.sleep(0.002)
            process.send_signal(number)
            _, messages = process.communicate(timeout=60)
        assert process.returncode == code
        assert messages.endswith(b"gitfast: interrupted; the same command goes on from here\n")
        part = out.read_bytes()
        assert undisturbed[0].startswith(part)
        assert part.endswith(b"\n")
        assert start(checkpoint_folder, *arguments).wait(120) == 1
        assert out.read_bytes() == undisturbed[0]

    def test_a_list_that_never_comes_can_be_interrupted(self, checkpoint_folder, tmp_path):
        arguments = ("--files-from", "-", "--out", tmp_path / "out.jsonl")
        with start(checkpoint_folder, *arguments, stdin=subprocess.PIPE, stderr=subprocess.PIPE) as process:
            deadline = time.monotonic() + 60
            while not (tmp_path / "out.jsonl").exists() and time.monotonic() < deadline:
                time.sleep(0.01)
            process.send_signal(signal.SIGINT)
            assert process.wait(60) == 130
            assert process.stderr.read().startswith(b"gitfast: interrupted")

    @pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
    def test_a_full_disk_is_one_error(self, photos, checkpoint_folder):
        for arguments in ([photos], [photos, "--out", "/dev/full"]):
            with open("/dev/full", "wb") as full:
                (photos / "bad.png").unlink(missing_ok=True)
                process = start(checkpoint_folder, *arguments, stdout=full, stderr=subprocess.PIPE)
                _, messages = process.communicate(timeout=60)
            name = "standard output" if len(arguments) == 1 else "/dev/full"
            assert (process.returncode, messages.decode()) == (1, f"gitfast: {name}: No space left on device\n")

    @pytest.mark.parametrize("closed", ["1", slow("2"), slow("0"), "0 1 2"])
    def test_closed_streams(self, photos, checkpoint_folder, tmp_path, closed):
        arguments = [str(x) for x in (photos, "--model", checkpoint_folder, "--out", tmp_path / "out.jsonl")]
        closing = "import os, sys; [os.close(int(x)) for x in sys.argv[1].split()]; os.execv(sys.argv[2], sys.argv[2:])"
        command = [*PYTHON, "-c", closing, closed, *COMMAND]
        done = subprocess.run([*command, *arguments], env=ENVIRONMENT, capture_output=True, check=False, timeout=60)
        assert done.returncode == 1, "one image is damaged"
        assert b"Traceback" not in done.stderr
        assert len((tmp_path / "out.jsonl").read_text().splitlines()) == 4
        done = subprocess.run(
            [*command, *arguments[:-2]], env=ENVIRONMENT, capture_output=True, check=False, timeout=60
        )
        assert (done.returncode, b"Traceback" in done.stderr) == (1, False)
        if closed in ("0", "2"):
            assert len(done.stdout.splitlines()) == 4


def size_of(path: Path) -> int:
    """Bytes of a file or its part, or the number of files in a folder."""
    part = path.with_name(path.name + ".overwrite-part")
    if path.is_dir():
        return len(list(path.iterdir()))
    return sum(p.stat().st_size for p in (path, part) if p.is_file())
