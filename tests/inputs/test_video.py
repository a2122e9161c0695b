"""Clips from frames, animations and video files; which frames are taken; what hostile files do."""

from __future__ import annotations

import gc
import io
import itertools
import os
import sys
import weakref
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gitfast.errors import ImageError, VideoError
from gitfast.inputs import video_files
from gitfast.inputs.limits import Limits
from gitfast.inputs.video import load_clip, read_clip, sample_indices

from support.processes import run_python
from support.tiers import examples

STEP = 6  # grey levels between neighbouring frames: more than lossy codecs change a flat frame


def grey_frames(count: int, height: int = 48, width: int = 64) -> list[np.ndarray]:
    return [np.full((height, width, 3), STEP * index, np.uint8) for index in range(count)]


def frame_numbers(clip: list[PIL.Image.Image]) -> list[int]:
    return [round(np.asarray(frame).mean() / STEP) for frame in clip]


def encode_video(frames: list[np.ndarray], container: str = "mp4", codec: str = "libx264", rate: int = 10) -> bytes:
    av = pytest.importorskip("av", reason="PyAV is not installed")
    buffer = io.BytesIO()
    with av.open(buffer, "w", format=container) as output:
        stream = output.add_stream(codec, rate=rate)
        stream.height, stream.width = frames[0].shape[:2]
        stream.bit_rate = 4_000_000
        stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
        for frame in frames:
            output.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        output.mux(stream.encode())
    return buffer.getvalue()


def cut_video(frames: list[np.ndarray], hidden: int, rate: int = 10) -> bytes:
    """A film cut as phones do it: its first frames are there, and hidden by a list of edits."""
    av = pytest.importorskip("av", reason="PyAV is not installed")
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4", options={"avoid_negative_ts": "disabled"}) as output:
        stream = output.add_stream("libx264", rate=rate, options={"bf": "0"})
        stream.height, stream.width = frames[0].shape[:2]
        stream.bit_rate = 4_000_000
        stream.pix_fmt = "yuv420p"
        packets = [p for frame in frames for p in stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24"))]
        for packet in packets + stream.encode():
            start = round(hidden / rate / packet.time_base)
            packet.pts, packet.dts = packet.pts - start, packet.dts - start
            output.mux(packet)
    return buffer.getvalue()


def encode_animation(frames: list[np.ndarray], image_format: str) -> bytes:
    first, *rest = [PIL.Image.fromarray(frame) for frame in frames]
    buffer = io.BytesIO()
    options = {"lossless": True} if image_format == "WEBP" else {}
    first.save(buffer, image_format, save_all=True, append_images=rest, **options)
    return buffer.getvalue()


@given(total=st.integers(1, 400), num_frames=st.integers(1, 40))
def test_uniform_sampling(total: int, num_frames: int) -> None:
    indices = sample_indices(total, num_frames)
    assert len(indices) == num_frames
    assert indices == sorted(indices)
    if total <= num_frames:
        assert set(indices) == set(range(total))  # every frame, some repeated
    else:
        gaps = np.diff([-1, *indices])[1:]
        assert len(set(indices)) == num_frames
        assert gaps.size == 0 or gaps.max() - gaps.min() <= 1


def test_uniform_sampling_by_hand() -> None:
    assert sample_indices(6, 6) == [0, 1, 2, 3, 4, 5]
    assert sample_indices(60, 6) == [5, 15, 25, 35, 45, 55]
    assert sample_indices(1, 6) == [0] * 6
    assert sample_indices(3, 6) == [0, 0, 1, 1, 2, 2]


@given(total=st.integers(25, 2000), seed=st.integers(0, 2**32 - 1))
def test_hf_sampling_is_that_of_the_documentation(total: int, seed: int) -> None:
    """sample_frame_indices(clip_len=6, frame_sample_rate=4, seg_len=total) of transformers' GIT page."""
    np.random.seed(seed)
    end = np.random.randint(24, total)
    expected = np.clip(np.linspace(end - 24, end, num=6), end - 24, end - 1).astype(np.int64)
    assert sample_indices(total, 6, "hf", seed) == expected.tolist()


@pytest.mark.parametrize(
    ("total", "sampling", "message"),
    [
        (0, "uniform", "expected at least one frame, got none"),
        (24, "hf", "needs more than 24 frames, got 24"),
        (5, [0, 5], "expected indices from 0 to 4"),
        (5, [-1], "expected indices from 0 to 4"),
        (5, [], "expected indices"),
        (5, lambda total: range(total + 1), "expected indices"),
    ],
)
def test_impossible_sampling(total: int, sampling: object, message: str) -> None:
    with pytest.raises(VideoError, match=message):
        sample_indices(total, 6, sampling)


def test_unknown_sampling() -> None:
    with pytest.raises(ValueError, match="sampling: expected 'uniform', 'hf', indices or a function, got 'random'"):
        sample_indices(5, 6, "random")  # type: ignore[arg-type]


def test_clips_from_frames_at_hand(tmp_path: Path) -> None:
    frames = grey_frames(30)
    for source in (frames, tuple(frames), np.stack(frames), [PIL.Image.fromarray(frame) for frame in frames]):
        assert frame_numbers(load_clip(source)) == [2, 7, 12, 17, 22, 27]
    assert frame_numbers(load_clip(frames, num_frames=3, sampling=lambda total: [total - 1, 0])) == [29, 0]
    PIL.Image.fromarray(frames[4]).save(tmp_path / "frame.png")
    mixed = [tmp_path / "frame.png", (tmp_path / "frame.png").read_bytes(), frames[1]]
    assert frame_numbers(load_clip(mixed, num_frames=3)) == [4, 4, 1]
    assert frame_numbers(load_clip(["unread.png", frames[1]], num_frames=2, sampling=[1, 1])) == [1, 1]


@pytest.mark.parametrize("image_format", ["GIF", "WEBP", "PNG"])
def test_clips_from_animations(image_format: str, tmp_path: Path) -> None:
    data = encode_animation(grey_frames(12), image_format)
    path = tmp_path / "animation"
    path.write_bytes(data)
    for source in (data, path, io.BytesIO(data), PIL.Image.open(path)):
        assert frame_numbers(load_clip(source)) == [1, 3, 5, 7, 9, 11]
        assert frame_numbers(load_clip(source, sampling=[11, 0])) == [11, 0]


def test_a_still_image_repeats() -> None:
    still = PIL.Image.fromarray(grey_frames(4)[3])
    buffer = io.BytesIO()
    still.save(buffer, "JPEG")
    for source in (still, buffer.getvalue()):
        assert frame_numbers(load_clip(source)) == [3] * 6
    exif = PIL.Image.Exif()
    exif[0x0112] = 6
    still.save(buffer := io.BytesIO(), "JPEG", exif=exif)
    assert load_clip(buffer)[0].size == (48, 64)
    assert load_clip(buffer, exif=False)[0].size == (64, 48)


@pytest.mark.parametrize(
    ("container", "codec"),
    [
        ("mp4", "libx264"),
        ("mp4", "mpeg4"),
        ("matroska", "libx264"),  # no frame count in its header
        ("webm", "libvpx-vp9"),
        ("avi", "mpeg4"),
        ("mov", "mjpeg"),
        ("mpegts", "mpeg2video"),
    ],
)
def test_clips_from_video_files(container: str, codec: str, tmp_path: Path) -> None:
    rate = 25 if codec == "mpeg2video" else 10
    data = encode_video(grey_frames(30), container, codec, rate)
    path = tmp_path / "video"
    path.write_bytes(data)
    with path.open("rb") as file:
        for source in (str(path), path, data, file):
            assert frame_numbers(load_clip(source)) == [2, 7, 12, 17, 22, 27]
    assert load_clip(path)[0].size == (64, 48)
    assert frame_numbers(load_clip(path, num_frames=40)) == [(2 * i + 1) * 30 // 80 for i in range(40)]


def test_frames_are_those_pyav_decodes() -> None:
    av = pytest.importorskip("av")
    noise = list(np.random.default_rng(0).integers(0, 256, (30, 48, 64, 3), np.uint8))
    data = encode_video(noise)
    with av.open(io.BytesIO(data)) as container:
        theirs = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    indices = sample_indices(30, 6, "hf", seed=45)
    for ours, index in zip(load_clip(data, sampling="hf", seed=45), indices, strict=True):
        np.testing.assert_array_equal(np.asarray(ours), theirs[index])


def test_a_pipe_is_read_into_memory() -> None:
    data = encode_video(grey_frames(12))
    read, write = os.pipe()
    with os.fdopen(read, "rb") as reader, os.fdopen(write, "wb") as writer:
        writer.write(data)
        writer.close()
        assert frame_numbers(load_clip(reader)) == [1, 3, 5, 7, 9, 11]


@pytest.mark.parametrize(("angle", "turns"), [(90, 1), (180, 2), (270, 3)])
def test_rotated_videos_come_upright(angle: int, turns: int) -> None:
    """The track's display matrix turns the picture, as phones write it."""
    frame = np.zeros((48, 64, 3), np.uint8)
    frame[:24, :32] = 250  # a bright top left quarter
    data = encode_video([frame] * 6)
    cosine, sine = {90: (0, -1), 180: (-1, 0), 270: (0, 1)}[angle]
    one = 1 << 16
    matrix = np.array([cosine * one, sine * one, 0, -sine * one, cosine * one, 0, 0, 0, 1 << 30], ">i4").tobytes()
    header = data.index(b"tkhd") + 4 + 40
    rotated = load_clip(data[:header] + matrix + data[header + 36 :])[0]
    expected = np.rot90(np.asarray(load_clip(data)[0]), turns)
    np.testing.assert_array_equal(np.asarray(rotated), expected)


@pytest.mark.parametrize("hidden", [2, 10])
def test_frames_that_a_cut_hides_are_not_counted(hidden: int) -> None:
    data = cut_video(grey_frames(40), hidden)
    expected = [hidden + index for index in sample_indices(40 - hidden, 6)]
    assert frame_numbers(load_clip(data)) == expected
    pixels = (hidden + 1) * 64 * 48  # they are decoded too
    assert frame_numbers(load_clip(data, sampling=[0], limits=Limits(max_video_pixels=pixels))) == [hidden]
    with pytest.raises(VideoError, match=rf"{pixels} pixels up to the last frame wanted"):
        load_clip(data, sampling=[0], limits=Limits(max_video_pixels=pixels - 1))


def test_fewer_frames_than_packets(monkeypatch: pytest.MonkeyPatch) -> None:
    data = encode_video(grey_frames(12))
    monkeypatch.setattr(video_files, "_count_packets", lambda file, limits, name: (100, 0))
    assert frame_numbers(load_clip(data)) == [1, 3, 5, 7, 9, 11]


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        (Limits(max_video_seconds=2.9), "lasts 3.0 s; at most 2.9 s"),
        (Limits(max_video_frames=29), "more than 29 frames"),
        (Limits(max_video_bytes=1000), "more than 1000 bytes"),
        (Limits(max_clip_frames=5), "at most 5 frames are kept, got 6"),
        (Limits(max_frame_pixels=64 * 48 - 1), "64 x 48 pixels; at most 3071"),
    ],
    ids=str,
)
def test_limits_of_video_files(limits: Limits, message: str, tmp_path: Path) -> None:
    path = tmp_path / "video.mp4"
    path.write_bytes(encode_video(grey_frames(30)))
    with pytest.raises(VideoError, match=message) as caught:
        load_clip(path, limits=limits)
    assert str(caught.value).startswith(str(path))


def test_frames_that_grow_on_the_way() -> None:
    """The header's size is within the limit; the decoder itself must refuse what comes later."""
    small = encode_video(grey_frames(12), "mpegts", "mpeg2video", 25)
    large = encode_video(grey_frames(12, 480, 640), "mpegts", "mpeg2video", 25)
    limits = Limits(max_frame_pixels=100_000)
    assert len(load_clip(small + small, limits=limits)) == 6
    with pytest.raises(VideoError):
        load_clip(small + large, limits=limits)


def test_limits_of_animations() -> None:
    data = encode_animation(grey_frames(12), "GIF")
    with pytest.raises(VideoError, match="more than 11 frames"):
        load_clip(data, limits=Limits(max_video_frames=11))
    with pytest.raises(VideoError, match="at most 3071 are allowed"):
        load_clip(data, limits=Limits(max_pixels=3071))


def hostile_files() -> dict[str, bytes]:
    return {
        "empty.mp4": b"",
        "text.mp4": b"no video at all\n" * 100,
        "random.mp4": np.random.default_rng(6).bytes(4000),
        "archive.avi": b"PK\3\4" + b"\0" * 300,
        "playlist.mp4": b"#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:10,\n/etc/hostname\n#EXT-X-ENDLIST\n",
        "concat.mp4": b"ffconcat version 1.0\nfile '/etc/hostname'\n",
        "sound.wav": b"RIFF\x24\0\0\0WAVEfmt \x10\0\0\0\1\0\1\0\x40\x1f\0\0\x80\x3e\0\0\2\0\x10\0data\0\0\0\0",
        "cut.gif": encode_animation(grey_frames(3), "GIF")[:40],
        "ftyp-only.mp4": b"\0\0\0\x18ftypmp42\0\0\0\0mp42isom",
    }


@pytest.mark.parametrize("name", hostile_files())
def test_hostile_files_are_refused_by_name(name: str, tmp_path: Path) -> None:
    pytest.importorskip("av")
    path = tmp_path / name
    path.write_bytes(hostile_files()[name])
    with pytest.raises(VideoError) as caught:
        load_clip(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert "Errno" not in str(caught.value)


def test_sound_without_pictures() -> None:
    av = pytest.importorskip("av")
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as output:
        stream = output.add_stream("aac", rate=8000)
        silence = av.AudioFrame.from_ndarray(np.zeros((1, 4096), np.float32), format="fltp", layout="mono")
        silence.sample_rate = 8000
        output.mux(stream.encode(silence))
        output.mux(stream.encode())
    with pytest.raises(VideoError, match="encoded bytes: holds no video stream"):
        load_clip(buffer.getvalue())


def test_codecs_beyond_the_common_ones_are_refused() -> None:
    with pytest.raises(VideoError, match="its codec is not one of h264"):
        load_clip(encode_video(grey_frames(6), "matroska", "ffv1"))


def test_playlists_are_not_followed(tmp_path: Path) -> None:
    """A playlist that FFmpeg itself would follow to another file."""
    av = pytest.importorskip("av")
    (tmp_path / "secret.ts").write_bytes(encode_video(grey_frames(30), "mpegts", "mpeg2video", 25))
    playlist = tmp_path / "list.m3u8"
    playlist.write_text("#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:2,\nsecret.ts\n#EXT-X-ENDLIST\n")
    with av.open(str(playlist)) as container:
        assert container.streams.video
    for source in (playlist, str(playlist)):
        with pytest.raises(VideoError, match="not a video"):
            load_clip(source)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("no/video.mp4", "no/video.mp4: No such file or directory"),
        (".", "expected a regular file, got a folder"),
        ("http://example.com/cat.mp4", "URLs are never fetched"),
        ("rtsp://example.com/live", "URLs are never fetched"),
        (7, "expected a path.* got int"),
        (np.zeros((8, 9, 3), np.uint8), r"expected an array of shape \(T, H, W, 3\), got \(8, 9, 3\)"),
        ([np.zeros((8, 9), np.float32)], r"frames\[0\]: .*expected uint8"),
        ([], "at least one frame"),
    ],
)
def test_bad_sources(source: object, message: str) -> None:
    with pytest.raises(VideoError, match=message):
        load_clip(source)


@settings(max_examples=examples(40), deadline=None)
@given(
    st.sampled_from(["mp4", "matroska", "avi"]),
    st.floats(0, 1),
    st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), max_size=20),
)
def test_damaged_files_raise_video_errors_only(container: str, cut: float, changes: list[tuple[float, int]]) -> None:
    data = bytearray(encode_video(grey_frames(12), container, "mpeg4"))
    for position, value in changes:
        data[int(position * (len(data) - 1))] = value
    message = ""
    try:
        assert len(load_clip(bytes(data[: int(cut * len(data))]))) == 6
    except VideoError as error:
        message = str(error)
    assert "Errno" not in message


def test_without_pyav(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(VideoError, match=r'pip install "gitfast\[video\]"'):
        load_clip(b"\0\0\0\x18ftypmp42")
    assert frame_numbers(load_clip(encode_animation(grey_frames(6), "GIF"))) == [0, 1, 2, 3, 4, 5]


def test_video_errors_are_image_errors() -> None:
    with pytest.raises(ImageError):
        load_clip("no.mp4")


# Streams and how they are shown


def quarter(height: int = 48, width: int = 64) -> np.ndarray:
    """A frame with a bright top left quarter, and a dimmer one to its right, so that no turn hides another."""
    frame = np.zeros((height, width, 3), np.uint8)
    frame[: height // 2, : width // 2] = 250
    frame[: height // 2, width // 2 :] = 120
    return frame


def with_matrix(data: bytes, a: float, b: float, c: float, d: float) -> bytes:
    """The MP4 with this display matrix in its track header."""
    values = [round(value * 65536) for value in (a, b, 0, c, d, 0, 0, 0)]
    matrix = np.array([*values, 1 << 30], ">i4").tobytes()
    header = data.index(b"tkhd") + 4 + 40
    return data[:header] + matrix + data[header + 36 :]


@pytest.mark.parametrize(
    ("matrix", "shown"),
    [
        ((1, 0, 0, 1), lambda f: f),
        ((0, 1, -1, 0), lambda f: np.rot90(f, -1)),
        ((-1, 0, 0, -1), lambda f: np.rot90(f, 2)),
        ((0, -1, 1, 0), lambda f: np.rot90(f, 1)),
        ((-1, 0, 0, 1), np.fliplr),
        ((1, 0, 0, -1), np.flipud),
        ((0, 1, 1, 0), lambda f: f.transpose(1, 0, 2)),
        ((0, -1, -1, 0), lambda f: np.rot90(f, 2).transpose(1, 0, 2)),
        ((2, 0, 0, 2), lambda f: f),  # the size is not the matrix's to say
        ((0, 0, 0, 0), lambda f: f),
    ],
)
def test_the_whole_display_matrix_is_applied(matrix: tuple[int, int, int, int], shown) -> None:
    """(a, b, c, d): the pixel (x, y) is shown at (a x + c y, b x + d y)."""
    data = encode_video([quarter()] * 6)
    stored = np.asarray(load_clip(data)[0])
    np.testing.assert_array_equal(np.asarray(load_clip(with_matrix(data, *matrix))[0]), shown(stored))


def test_frames_shown_askew_are_refused() -> None:
    with pytest.raises(VideoError, match="turned by other than right angles"):
        load_clip(with_matrix(encode_video([quarter()] * 6), 0.7071, 0.7071, -0.7071, 0.7071))


def encode_streams(*streams: tuple[str, list[np.ndarray], str]) -> bytes:
    """An MP4 of several video streams: (codec, frames, disposition)."""
    av = pytest.importorskip("av")
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as output:
        opened = []
        for codec, frames, disposition in streams:
            stream = output.add_stream(codec, rate=10)
            stream.height, stream.width = frames[0].shape[:2]
            stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
            stream.disposition = getattr(av.stream.Disposition, disposition) if disposition else 0
            opened.append((stream, frames))
        for stream, frames in opened:
            for frame in frames:
                output.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
            output.mux(stream.encode())
    return buffer.getvalue()


COVER = np.full((480, 640, 3), 200, np.uint8)


def test_a_cover_picture_is_no_film() -> None:
    cover = ("mjpeg", [COVER], "attached_pic")
    for streams in ((cover, ("libx264", grey_frames(12), "")), (("libx264", grey_frames(12), "default"), cover)):
        assert frame_numbers(load_clip(encode_streams(*streams))) == [1, 3, 5, 7, 9, 11]
    with pytest.raises(VideoError, match="holds no video stream, only a cover picture"):
        load_clip(encode_streams(cover))


def test_the_best_of_several_streams_is_taken() -> None:
    small = [np.full((48, 64, 3), 200, np.uint8)] * 12
    large = grey_frames(12, 96, 128)
    for streams in (
        (("libx264", small, "default"), ("libx264", large, "default")),
        (("libx264", small, ""), ("libx264", large, "default")),
        (("libx264", large, "default"), ("libx264", [np.full((192, 256, 3), 200, np.uint8)] * 12, "")),
    ):
        clip = load_clip(encode_streams(*streams))
        assert clip[0].size == (128, 96)
        assert frame_numbers(clip) == [1, 3, 5, 7, 9, 11]


# Bounds


@pytest.mark.parametrize(("container", "codec"), [("mp4", "libx264"), ("mp4", "mpeg4"), ("webm", "libvpx-vp9")])
def test_frames_larger_than_allowed_are_named_so(container: str, codec: str) -> None:
    """FFmpeg leaves the size at 0 x 0 of frames that it must not decode."""
    data = encode_video(grey_frames(3, 96, 128), container, codec)
    with pytest.raises(VideoError, match=r"96 pixels; at most 12287|or more than 12287 pixels \(max_frame_pixels\)"):
        load_clip(data, limits=Limits(max_frame_pixels=96 * 128 - 1))


def test_pixels_decoded_are_bounded() -> None:
    data = encode_video(grey_frames(30))
    assert len(load_clip(data, limits=Limits(max_video_pixels=28 * 64 * 48))) == 6
    with pytest.raises(VideoError, match="86016 pixels up to the last frame wanted; at most 86015 are decoded"):
        load_clip(data, limits=Limits(max_video_pixels=28 * 64 * 48 - 1))
    assert len(load_clip(data, sampling=[0, 1], limits=Limits(max_video_pixels=2 * 64 * 48))) == 2


def test_no_list_of_a_thousand_million_frames_is_made() -> None:
    data = encode_video(grey_frames(6))
    with pytest.raises(VideoError, match="at most 512 frames are kept, got 1000000000"):
        load_clip(data, num_frames=10**9)
    with pytest.raises(VideoError, match="at most 512 frames are kept, got more"):
        load_clip(data, sampling=lambda total: itertools.repeat(0))
    with pytest.raises(VideoError, match="expected indices from 0 to 5"):
        load_clip(data, sampling=lambda total: ["first"])  # type: ignore[list-item]


def test_frames_of_a_clip_are_not_held_together() -> None:
    """Each is prepared as soon as it is decoded, so that a clip of many large frames takes the memory of one."""
    alive: list[weakref.ref[PIL.Image.Image]] = []
    most = 0

    def prepare(picture: PIL.Image.Image) -> int:
        nonlocal most
        alive.append(weakref.ref(picture))
        gc.collect()
        most = max(most, sum(ref() is not None for ref in alive))
        return round(np.asarray(picture).mean() / STEP)

    gc.collect()
    gc.freeze()  # only what the clips make is looked through again
    for source in (encode_video(grey_frames(12)), encode_animation(grey_frames(12), "GIF"), grey_frames(12)):
        assert read_clip(source, prepare, num_frames=12) == list(range(12))
    gc.unfreeze()
    assert most <= 2


LOGGING = """
import logging, sys
import av
from gitfast.errors import VideoError
from gitfast.inputs.video import load_clip

logging.basicConfig(level=1, stream=open("/dev/null", "w"))
logging.getLogger("libav").setLevel(1)
av.logging.set_level(av.logging.TRACE)
data = open(sys.argv[1], "rb").read()
for _ in range(40):
    try:
        load_clip(data, sampling=[0])  # stops while FFmpeg's threads are at later frames
    except VideoError:
        pass
print("done")
"""


def test_a_video_is_read_while_the_application_has_set_a_log_callback(tmp_path: Path) -> None:
    """FFmpeg's threads take Python's lock to log about damaged frames; whoever ends them holds it."""
    rng = np.random.default_rng(0)
    data = bytearray(encode_video(list(rng.integers(0, 256, (12, 480, 640, 3), np.uint8))))
    for place in rng.integers(5000, len(data) - 5000, 400):
        data[place] ^= 255
    path = tmp_path / "damaged.mp4"
    path.write_bytes(data)
    done = run_python(LOGGING, path, timeout=200)
    assert done.stdout == "done\n", done.stderr[-2000:]
