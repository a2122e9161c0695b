"""Threads that read: a budget of bytes, a pool that survives forks, and files of every kind that end or do not."""

from __future__ import annotations

import gzip
import io
import os
import platform
import threading
import time
import zipfile
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from gitfast.errors import ImageError, VideoError
from gitfast.inputs import reading
from gitfast.inputs.image import ImageProcessor
from gitfast.inputs.limits import Limits
from gitfast.inputs.pictures import load_image
from gitfast.inputs.reading import ByteBudget, map_in_threads
from gitfast.inputs.video import load_clip

from support.processes import run_python

WAIT_S = 30  # for what happens at once unless it never does


def png(width: int = 60, height: int = 40, mode: str = "RGB") -> bytes:
    image = PIL.Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8))
    buffer = io.BytesIO()
    image.convert(mode).save(buffer, "PNG")
    return buffer.getvalue()


# The budget


def test_a_budget_lets_in_what_fits_and_one_that_does_not() -> None:
    budget = ByteBudget()
    with budget.decoding(60, 100), budget.decoding(40, 100):
        assert budget.held == 100
        late = budget.decoding(1, 100)
        waiting = threading.Thread(target=late.__enter__)
        waiting.start()
        waiting.join(0.1)
        assert waiting.is_alive()
    waiting.join(WAIT_S)
    assert budget.held == 1

    large = ByteBudget()
    with large.decoding(1000, 100):
        assert large.held == 1000


def test_encoded_bytes_that_wait_never_stop_the_last_decoder() -> None:
    """Eight threads read 60 of 100 bytes each and then need 80 more: one after another gets through."""
    budget = ByteBudget()
    peaks = []

    def read(_: int) -> None:
        with budget.reading(60, 100), budget.decoding(80, 100):
            peaks.append(budget.held)

    threads = [threading.Thread(target=read, args=(i,), daemon=True) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(WAIT_S)
    assert len(peaks) == 8
    assert max(peaks) <= 60 + 80 + 60  # one that decodes, and one that has read
    assert budget.held == 0


def test_pictures_decoded_at_once_stay_within_the_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    budget = ByteBudget()
    monkeypatch.setattr("gitfast.inputs.pictures.BUDGET", budget)
    monkeypatch.setattr(reading, "usable_cpus", lambda: 8)
    peaks: list[int] = []
    preprocess = ImageProcessor.preprocess

    def watched(self: ImageProcessor, *args: object, **options: object) -> np.ndarray:
        peaks.append(budget.held)
        return preprocess(self, *args, **options)

    monkeypatch.setattr(ImageProcessor, "preprocess", watched)
    pixels = 500 * 400
    limits = Limits(max_decoding_bytes=3 * 8 * pixels)
    ImageProcessor()([png(500, 400, mode="RGBA")] * 24, limits=limits, num_threads=8)
    assert len(peaks) == 24
    assert max(peaks) <= limits.max_decoding_bytes
    ImageProcessor()([png(500, 400)] * 8, limits=Limits(max_decoding_bytes=1), num_threads=8)
    assert max(peaks[24:]) == 8 * pixels  # each alone
    assert budget.held == 0


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library keeps less, and is not told to")
def test_memory_of_pictures_does_not_grow_with_threads() -> None:
    """Glibc keeps what a thread has freed for that thread: eight would come to hold a picture each."""
    code = """
import io, resource
import PIL.Image
from gitfast.inputs import reading
from gitfast.inputs.image import ImageProcessor
from gitfast.inputs.limits import Limits

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10

reading.usable_cpus = lambda: 8
png = io.BytesIO()
PIL.Image.new("RGBA", (3000, 3000)).save(png, "PNG", compress_level=1)
picture = 8 * 3000 * 3000
processor, limits = ImageProcessor(), Limits(max_decoding_bytes=picture)
processor([png.getvalue()], limits=limits)
before = peak()
processor([png.getvalue()] * 12, limits=limits, num_threads=8)
print((peak() - before) / picture)
"""
    assert float(run_python(code, check=True).stdout) < 3.5  # 8 without giving back


def test_the_budget_is_released_by_bad_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    budget = ByteBudget()
    monkeypatch.setattr("gitfast.inputs.pictures.BUDGET", budget)
    for data in (png()[:-300], b"no image", png(600, 2)):
        with pytest.raises(ImageError):
            load_image(data)
    assert budget.held == 0


# The pool


def test_the_pool_is_kept_between_calls() -> None:
    together = threading.Barrier(2)
    map_in_threads(lambda _: together.wait(WAIT_S), range(2), 2)
    before = {thread.ident for thread in threading.enumerate() if thread.name.startswith("gitfast-read")}
    for _ in range(5):
        map_in_threads(lambda _: together.wait(WAIT_S), range(2), 2)
    after = {thread.ident for thread in threading.enumerate() if thread.name.startswith("gitfast-read")}
    assert before == after
    assert 1 <= len(after) <= 32


def test_results_come_in_order_and_the_first_error_is_raised() -> None:
    assert map_in_threads(lambda i: i * i, range(100), 8) == [i * i for i in range(100)]
    begun = []

    def fail(index: int) -> None:
        begun.append(index)
        if index in (3, 4, 50):
            raise ValueError(index)

    with pytest.raises(ValueError, match=r"^3$"):
        map_in_threads(fail, range(1000), 8)
    assert len(begun) < 1000


def test_calls_may_be_nested_deeper_than_there_are_threads() -> None:
    def count(depth: int) -> int:
        return 1 if depth == 0 else sum(map_in_threads(count, [depth - 1] * 3, 3))

    assert count(5) == 3**5


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_child_forked_while_a_thread_reads_can_read() -> None:
    inside, done = threading.Event(), threading.Event()

    def hold() -> None:
        with reading.BUDGET.decoding(1 << 40, 1), reading.BUDGET._changed, reading._POOL._lock:
            inside.set()
            done.wait(WAIT_S)

    map_in_threads(lambda _: None, range(4), 4)  # threads that the child will not have
    holder = threading.Thread(target=hold)
    holder.start()
    assert inside.wait(WAIT_S)
    child = os.fork()
    if child == 0:
        status = 1
        try:
            status = 0 if ImageProcessor()([png()] * 4, num_threads=4).shape == (4, 3, 224, 224) else 2
        finally:
            os._exit(status)
    deadline = time.monotonic() + WAIT_S
    while (ended := os.waitpid(child, os.WNOHANG))[0] == 0 and time.monotonic() < deadline:
        time.sleep(0.01)
    done.set()
    holder.join()
    if ended[0] == 0:
        os.kill(child, 9)
        os.waitpid(child, 0)
    assert ended == (child, 0)


# Files


class ShortReads(io.RawIOBase):
    """A pipe that gives a few bytes at a time."""

    def __init__(self, data: bytes) -> None:
        self.rest = data

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        part, self.rest = self.rest[:7], self.rest[7:]
        return part


def test_pipes_may_give_less_than_asked_for() -> None:
    expected = np.asarray(load_image(png()))
    np.testing.assert_array_equal(np.asarray(load_image(ShortReads(png()))), expected)
    np.testing.assert_array_equal(np.asarray(load_clip(ShortReads(png()), num_frames=1)[0]), expected)
    read, write = os.pipe()
    with os.fdopen(read, "rb", buffering=0) as reader:

        def send() -> None:
            with os.fdopen(write, "wb", buffering=0) as writer:
                writer.write(png(300, 200))

        sender = threading.Thread(target=send)
        sender.start()
        assert load_image(reader).size == (300, 200)  # more than a pipe holds
        sender.join()


def zip_member(damaged: bool) -> io.BufferedIOBase:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("picture.png", png())
    data = bytearray(buffer.getvalue())
    if damaged:
        data[data.index(b"IDAT") + 9] ^= 1
    return zipfile.ZipFile(io.BytesIO(data)).open("picture.png")  # type: ignore[return-value]


def test_members_of_archives_are_read_and_their_faults_are_errors_of_the_image() -> None:
    expected = np.asarray(load_image(png()))
    for source in (zip_member(False), gzip.GzipFile(fileobj=io.BytesIO(gzip.compress(png())))):
        np.testing.assert_array_equal(np.asarray(load_image(source)), expected)
        np.testing.assert_array_equal(np.asarray(load_clip(source, num_frames=1)[0]), expected)
    for make in (
        lambda: zip_member(True),
        lambda: gzip.GzipFile(fileobj=io.BytesIO(gzip.compress(png())[:-900])),
        lambda: gzip.GzipFile(fileobj=io.BytesIO(b"no gzip at all")),
    ):
        with pytest.raises(ImageError, match="cannot be read: "):
            load_image(make())
        with pytest.raises(VideoError, match="cannot be read: "):
            load_clip(make())


def test_a_gzip_bomb_is_left_at_the_limit() -> None:
    bomb = gzip.compress(bytes(200_000_000), 1)
    limits = Limits(max_image_bytes=1_000_000, max_video_bytes=1_000_000)
    for read in (load_image, load_clip):
        file = gzip.GzipFile(fileobj=io.BytesIO(bomb))
        with pytest.raises(ImageError, match="more than 1000000 bytes"):
            read(file, limits=limits)
        assert file.tell() < 2_000_000


class Broken:
    def __init__(self, *, error: Exception | None = None, value: object = None) -> None:
        self.error, self.value = error, value

    def read(self, size: int = -1) -> object:
        if self.error:
            raise self.error
        return self.value


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (Broken(error=RuntimeError("connection lost")), "cannot be read: RuntimeError: connection lost"),
        (Broken(error=OSError(5, "Input/output error")), "cannot be read: Input/output error"),
        (Broken(value="text"), "opened in binary mode, got str"),
        (Broken(value=None), "opened in binary mode, got NoneType"),
        (Broken(value=b""), "not an image"),
    ],
)
def test_anybodys_file_objects(source: Broken, message: str) -> None:
    with pytest.raises(ImageError, match=message):
        load_image(source)  # type: ignore[arg-type]
    with pytest.raises(VideoError):
        load_clip(source)  # type: ignore[arg-type]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_paths_to_no_regular_file_are_refused_at_once(tmp_path: Path) -> None:
    pipe = tmp_path / "picture.png"
    os.mkfifo(pipe)
    link = tmp_path / "link.mp4"
    link.symlink_to(pipe)
    errors: list[Exception] = []

    def read_all() -> None:
        for source in (pipe, str(link), {"path": str(pipe)}, "/dev/zero"):
            for read in (load_image, load_clip):
                try:
                    read(source)
                except ImageError as error:
                    errors.append(error)

    reader = threading.Thread(target=read_all, daemon=True)
    reader.start()
    reader.join(WAIT_S)
    assert len(errors) == 8
    assert {str(error).split(": ", 1)[1] for error in errors} == {
        "expected a regular file, got a pipe, socket or device"
    }
