"""Names of what is no file, or only says that it is one: every command gives one error, and waits for nothing."""

from __future__ import annotations

import errno
import os
import re
import shutil
import socket
import stat

import pytest

from gitfast.checkpoints.files import open_regular
from gitfast.cli import main
from gitfast.errors import CheckpointError

pytestmark = pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")

FOLDER = "expected a regular file, got a folder"
OTHER = "expected a regular file, got a pipe, socket or device"
KINDS = {
    "folder": FOLDER,
    "pipe": OTHER,
    "socket": f"{os.strerror(errno.ENXIO)}|{os.strerror(errno.EOPNOTSUPP)}",
    "/dev/null": OTHER,
    "/dev/tty": f"{OTHER}|{os.strerror(errno.ENXIO)}",  # the latter without a terminal
    "/proc/self/mem": os.strerror(errno.EIO),
    "waiting": os.strerror(errno.EAGAIN),
}
COMMANDS = {
    "caption": ["caption", "--model", "{model}", "{link}.png"],
    "video": ["video", "--model", "{video_model}", "{link}.mp4"],
    "tar": ["caption", "--model", "{model}", "{link}.tar"],
    "gzip": ["caption", "--model", "{model}", "{link}.tar.gz"],
    "parquet": ["caption", "--model", "{model}", "{link}.parquet"],
    "configuration": ["info", "--model", "{broken}"],
    "references": ["evaluate", "captions", "{link}.json", "--captions", "{rows}"],
    "captions": ["evaluate", "captions", "{rows}", "--captions", "{link}.csv"],
    "questions": ["evaluate", "vqa", "{link}.jsonl", "--answers", "{rows}"],
}


@pytest.fixture(params=KINDS)
def kind(request, tmp_path, monkeypatch):
    """Make a name of each kind; give it and the reason that it is refused for."""
    name = tmp_path / "named"
    with socket.socket(socket.AF_UNIX) as bound:
        if request.param == "folder":
            name.mkdir()
        elif request.param == "socket":
            monkeypatch.chdir(tmp_path)  # such a name is short
            bound.bind("named")
        elif request.param in ("pipe", "waiting"):
            os.mkfifo(name)
        elif os.path.exists(request.param):
            name.symlink_to(request.param)
        else:
            pytest.skip(f"needs {request.param}")
        writer = None
        if request.param == "waiting":  # as /proc/kmsg, which is a regular file by its mode
            writer = os.open(name, os.O_RDWR)
            monkeypatch.setattr(stat, "S_ISREG", lambda mode: stat.S_IFMT(mode) in (stat.S_IFREG, stat.S_IFIFO))
        yield name, KINDS[request.param]
        if writer is not None:
            os.close(writer)


def test_open_regular(kind):
    name, reason = kind
    with pytest.raises(CheckpointError, match=rf"named: ({reason})"):
        open_regular(name)


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_names_it_in_one_error(command, kind, capsys, tmp_path, checkpoint_folder, video_checkpoint_folder):
    name, reason = kind
    shutil.copytree(checkpoint_folder, tmp_path / "broken")
    (tmp_path / "broken" / "config.json").unlink()
    (tmp_path / "broken" / "config.json").symlink_to(name)
    (tmp_path / "rows.jsonl").write_text('{"image_id": 1, "caption": "a"}\n')
    for suffix in (".png", ".mp4", ".tar", ".tar.gz", ".parquet", ".json", ".csv", ".jsonl"):
        (tmp_path / f"link{suffix}").symlink_to(name)
    values = {
        "model": checkpoint_folder,
        "video_model": video_checkpoint_folder,
        "link": tmp_path / "link",
        "broken": tmp_path / "broken",
        "rows": tmp_path / "rows.jsonl",
    }
    code = main([argument.format(**values) for argument in COMMANDS[command]])
    printed, messages = capsys.readouterr()
    assert (code, printed, messages.count("\n")) == (1, "", 1)
    assert re.search(f"{name.parent}.*: ({reason}|not a regular file)$|no files to read in the folders", messages)


@pytest.mark.skipif(not os.path.exists("/proc/self/mem"), reason="needs /proc")
def test_a_list_that_cannot_be_read(capsys):
    assert main(["caption", "--files-from", "/proc/self/mem"]) == 1
    assert capsys.readouterr() == ("", "gitfast: --files-from: Input/output error\n")
