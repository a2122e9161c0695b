"""Pixels against transformers' Pillow processors, and what happens to images that mean harm."""

from __future__ import annotations

import io
import json
import struct
import zipfile
import zlib
from pathlib import Path

import numpy as np
import PIL.Image
import PIL.ImageOps
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gitfast.checkpoints.published import SHAPES
from gitfast.errors import ConfigError, ImageError
from gitfast.inputs.formats import FORMATS
from gitfast.inputs.image import ImageProcessor
from gitfast.inputs.limits import Limits
from gitfast.inputs.pictures import load_image

from support.processes import run_python
from support.tiers import examples

CLIP_MEAN, CLIP_STD = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]


def published_settings(name: str) -> dict:
    """The preprocessor_config.json of a published checkpoint."""
    edge, video = SHAPES[name].vision_config.image_size, SHAPES[name].is_video
    return {
        "crop_size": {"height": edge, "width": edge},
        "do_center_crop": True,
        **({} if video else {"do_convert_rgb": True}),
        "do_normalize": True,
        "do_rescale": True,
        "do_resize": True,
        "image_mean": [0.5] * 3 if video else CLIP_MEAN,
        "image_processor_type": "VideoMAEImageProcessor" if video else "CLIPImageProcessor",
        "image_std": [0.5] * 3 if video else CLIP_STD,
        "processor_class": "GitProcessor",
        "resample": 2 if video else 3,
        "rescale_factor": 0.00392156862745098,
        "size": {"shortest_edge": edge},
    }


def transformers_pixels(values: dict, image: object, **options: object) -> np.ndarray:
    """(3, H, W) of transformers' Pillow processor of the kind and settings given."""
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
    from transformers.models.videomae.image_processing_pil_videomae import VideoMAEImageProcessorPil

    if values.get("image_processor_type") == "VideoMAEImageProcessor":
        return VideoMAEImageProcessorPil(**values)([image], return_tensors="np", **options).pixel_values[0][0]
    return CLIPImageProcessorPil(**values)(image, return_tensors="np", **options).pixel_values[0]


def assert_identical(ours: np.ndarray, theirs: np.ndarray) -> None:
    assert ours.dtype == theirs.dtype == np.float32
    assert ours.shape == theirs.shape
    np.testing.assert_array_equal(ours.view(np.int32), theirs.view(np.int32))


@pytest.fixture(scope="module")
def photographs() -> dict[str, PIL.Image.Image]:
    import matplotlib
    import sklearn

    samples = Path(sklearn.__file__).parent / "datasets" / "images"
    hopper = Path(matplotlib.get_data_path()) / "sample_data" / "grace_hopper.jpg"
    paths = [samples / "china.jpg", samples / "flower.jpg", hopper]
    return {path.name: PIL.Image.open(path).copy() for path in paths}


def picture(width: int = 60, height: int = 40, seed: int = 0) -> PIL.Image.Image:
    """Smooth gradients with noise on them, so that neither rounding nor filters can hide."""
    rng = np.random.default_rng(seed)
    x, y = np.linspace(0, 200, width), np.linspace(0, 200, height)[:, None]
    base = np.stack([x + 0 * y, 0 * x + y, (x + y) / 2], -1)
    return PIL.Image.fromarray((base + rng.integers(0, 56, base.shape)).astype(np.uint8))


def encoded(image: PIL.Image.Image, image_format: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, image_format, **options)
    return buffer.getvalue()


# Parity


@pytest.mark.parametrize("name", SHAPES)
def test_photographs_match_transformers(name: str, photographs: dict[str, PIL.Image.Image]) -> None:
    values = published_settings(name)
    processor = ImageProcessor.from_dict(values)
    assert processor == ImageProcessor.for_config(SHAPES[name])
    for photograph in photographs.values():
        assert_identical(processor(photograph)[0], transformers_pixels(values, photograph))


def odd_images() -> dict[str, PIL.Image.Image]:
    rgb = picture()
    alpha = PIL.Image.fromarray(np.random.default_rng(1).integers(0, 256, (40, 60), np.uint8))
    rgba = rgb.copy()
    rgba.putalpha(alpha)
    palette = rgb.quantize(16)
    images = {mode: rgb.convert(mode) for mode in ("1", "L", "P", "CMYK", "YCbCr", "LAB", "HSV", "RGBX")}
    images["RGBA"], images["LA"], images["PA"] = rgba, rgba.convert("LA"), rgba.convert("PA")
    images["RGBa"] = rgba.convert("RGBa")
    for name, image, transparency in (
        ("P, one transparent", palette, 3),
        ("P, alpha table", palette, bytes(range(0, 256, 16))),
        ("L, one transparent", rgb.convert("L"), 77),
        ("RGB, one transparent", rgb, rgb.getpixel((5, 5))),
    ):
        images[name] = image.copy()
        images[name].info["transparency"] = transparency
    return images


@pytest.mark.parametrize("name", odd_images())
def test_every_mode_matches_transformers(name: str) -> None:
    image = odd_images()[name]
    values = published_settings("git-base")
    assert_identical(ImageProcessor.from_dict(values)(image)[0], transformers_pixels(values, image))


def test_video_settings_take_frames_of_any_mode() -> None:
    """transformers' VideoMAE processor leaves grey frames with one channel, which no GIT checkpoint takes."""
    processor = ImageProcessor.from_dict(published_settings("git-base-vatex"))
    grey = picture().convert("L")
    np.testing.assert_array_equal(processor(grey), processor(grey.convert("RGB")))


@settings(max_examples=examples(120), deadline=None)
@given(
    width=st.integers(1, 300),
    height=st.integers(1, 300),
    edge=st.integers(1, 60),
    crop=st.tuples(st.integers(1, 90), st.integers(1, 90)),
    resample=st.integers(0, 5),
    exact=st.booleans(),
)
def test_any_size_matches_transformers(width, height, edge, crop, resample, exact) -> None:
    if max(width, height) > 50 * min(width, height):
        width = height
    values = {
        "size": {"height": edge, "width": crop[0]} if exact else {"shortest_edge": edge},
        "crop_size": {"height": crop[0], "width": crop[1]},
        "resample": resample,
        "image_mean": CLIP_MEAN,
        "image_std": CLIP_STD,
    }
    image = picture(width, height, seed=edge)
    assert_identical(ImageProcessor.from_dict(values)(image)[0], transformers_pixels(values, image))


@pytest.mark.parametrize(
    "changes",
    [
        {"do_resize": False},
        {"do_center_crop": False},
        {"do_normalize": False},
        {"do_rescale": False},
        {"rescale_factor": 1 / 127.5},
        {"size": 32, "crop_size": 24},
        {"size": {"height": 30, "width": 50}, "do_center_crop": False},
        {"size": [30, 50], "crop_size": [20, 44]},
        {"image_mean": 0.5, "image_std": [0.1, 0.2, 0.3]},
    ],
    ids=str,
)
def test_switches_match_transformers(changes: dict) -> None:
    values = {"size": {"shortest_edge": 32}, "crop_size": {"height": 24, "width": 24}, **changes}
    mean = values.get("image_mean")
    theirs = transformers_pixels({**values, **({"image_mean": [mean] * 3} if mean else {})}, picture())
    assert_identical(ImageProcessor.from_dict(values)(picture())[0], theirs)


@pytest.mark.parametrize("channels", [3, 4])
def test_arrays_match_transformers(channels: int) -> None:
    array = np.random.default_rng(2).integers(0, 256, (50, 70, channels), np.uint8)
    values = published_settings("git-base")
    theirs = transformers_pixels(values, array, input_data_format="channels_last")
    assert_identical(ImageProcessor.from_dict(values)(array)[0], theirs)


def test_compositing_on_white_matches_transformers_for_every_colour_and_alpha() -> None:
    """transformers composites arrays in floating point, Pillow images in integers; ours is the one of Pillow."""
    alpha, grey = np.meshgrid(np.arange(256, dtype=np.uint8), np.arange(256, dtype=np.uint8))
    array = np.stack([grey, grey, grey, alpha], -1)
    values = {"do_resize": False, "do_center_crop": False}
    theirs = transformers_pixels(values, array, input_data_format="channels_last")
    assert_identical(ImageProcessor.from_dict(values)(array)[0], theirs)


def test_grey_arrays_and_views() -> None:
    processor = ImageProcessor()
    grey = np.random.default_rng(3).integers(0, 256, (50, 70), np.uint8)
    np.testing.assert_array_equal(processor(grey), processor(np.repeat(grey[..., None], 3, axis=2)))
    np.testing.assert_array_equal(processor(grey), processor(grey[..., None]))
    colour = np.asarray(picture())
    np.testing.assert_array_equal(processor(colour[::2, ::-1]), processor(colour[::2, ::-1].copy()))


def test_batches_hold_the_same_pixels_as_single_images() -> None:
    processor = ImageProcessor(size=32, crop_size=(32, 32))
    images = [picture(60, 40), picture(33, 90), picture(5, 5)]
    batch = processor(images)
    assert batch.shape == (3, 3, 32, 32)
    for row, image in zip(batch, images, strict=True):
        np.testing.assert_array_equal(row, processor(image)[0])
    frames = np.stack([np.asarray(picture(seed=s)) for s in range(3)])
    np.testing.assert_array_equal(processor(frames), processor(list(frames)))


@pytest.mark.parametrize("changes", [{}, {"do_normalize": False}, {"do_rescale": False}, {"do_center_crop": False}])
def test_bytes_and_their_normalization_are_the_pixels(changes: dict) -> None:
    processor = ImageProcessor.from_dict({"size": 30, "crop_size": 24, **changes})
    images = [picture(seed=seed) for seed in (1, 2)]
    given, expected = processor(images, normalize=False), processor(images)
    assert given.dtype == np.uint8
    a, b = (np.array(values, np.float32) for values in processor.normalization.affine())
    np.testing.assert_allclose((given * a + b).transpose(0, 3, 1, 2), expected, rtol=1e-5, atol=1e-5)


def test_threads_change_nothing(photographs: dict[str, PIL.Image.Image]) -> None:
    lazy = PIL.Image.open(io.BytesIO(encoded(picture(300, 200))))
    file = io.BytesIO(encoded(photographs["flower.jpg"], "JPEG"))
    images = [*photographs.values(), lazy, lazy, file, file, encoded(picture())] * 3
    processor = ImageProcessor()
    alone = np.concatenate([processor(image) for image in images])
    np.testing.assert_array_equal(processor(images, num_threads=1), alone)
    lazy = PIL.Image.open(io.BytesIO(encoded(picture(300, 200))))
    images[3] = images[4] = lazy
    np.testing.assert_array_equal(processor(images, num_threads=8), alone)
    with pytest.raises(ImageError, match=r"images\[1\]: no.jpg"):  # the first of several
        processor([picture(), "no.jpg", picture(), "not.jpg"] * 4, num_threads=8)


# Sources


def test_every_source_gives_the_same_picture(tmp_path: Path) -> None:
    path = tmp_path / "picture.png"
    path.write_bytes(encoded(picture()))
    with path.open("rb") as file:
        file.read(10)  # a file object is read from its start
        sources = [str(path), path, path.read_bytes(), io.BytesIO(path.read_bytes()), file, picture()]
        for source in [*sources, bytearray(path.read_bytes()), np.asarray(picture())]:
            np.testing.assert_array_equal(np.asarray(load_image(source)), np.asarray(picture()))


def test_a_pipe_can_be_read() -> None:
    class Pipe:
        def __init__(self, data: bytes):
            self.read = io.BytesIO(data).read

    np.testing.assert_array_equal(np.asarray(load_image(Pipe(encoded(picture())))), np.asarray(picture()))


@pytest.mark.parametrize("image_format", FORMATS)
def test_every_format_is_read_as_pillow_reads_it(image_format: str, tmp_path: Path) -> None:
    path = tmp_path / "named.wrongly"
    path.write_bytes(encoded(picture(), image_format))
    expected = PIL.Image.open(path).convert("RGB")
    np.testing.assert_array_equal(np.asarray(load_image(path)), np.asarray(expected))


@pytest.mark.parametrize("image_format", ["PPM", "ICNS", "TGA", "EPS", "PDF", "JPEG2000"])
def test_other_formats_are_refused(image_format: str) -> None:
    with pytest.raises(ImageError, match="not of a supported format"):
        load_image(encoded(picture(64, 64), image_format))


@pytest.mark.parametrize("image_format", ["GIF", "WEBP", "TIFF", "PNG", "MPO"])  # MPO: some phones' JPEG
def test_an_animation_is_its_first_frame(image_format: str) -> None:
    frames = [PIL.Image.new("RGB", (20, 20), colour) for colour in ("red", "lime", "blue")]
    data = encoded(frames[0], image_format, save_all=True, append_images=frames[1:], **_lossless(image_format))
    assert PIL.Image.open(io.BytesIO(data)).n_frames == 3
    np.testing.assert_allclose(load_image(data).getpixel((10, 10)), (255, 0, 0), atol=2)


def _lossless(image_format: str) -> dict:
    return {"lossless": True} if image_format == "WEBP" else {}


@pytest.mark.parametrize("orientation", range(0, 10))
@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_exif_orientation(image_format: str, orientation: int) -> None:
    exif = PIL.Image.Exif()
    exif[0x0112] = orientation
    data = encoded(picture(), image_format, exif=exif)
    stored = PIL.Image.open(io.BytesIO(data))
    upright = PIL.ImageOps.exif_transpose(stored)
    np.testing.assert_array_equal(np.asarray(load_image(data)), np.asarray(upright))
    as_stored = PIL.Image.open(io.BytesIO(data))  # Pillow itself rotates TIFF while it decodes
    np.testing.assert_array_equal(np.asarray(load_image(data, exif=False)), np.asarray(as_stored))
    np.testing.assert_array_equal(np.asarray(load_image(as_stored)), np.asarray(as_stored))
    if 5 <= orientation <= 8:
        assert upright.size == (40, 60)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_damaged_exif_is_ignored() -> None:
    data = encoded(picture(), "JPEG", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff" + b"\xff" * 40)
    assert load_image(data).size == picture().size


# Harm


def test_smallest_images() -> None:
    processor = ImageProcessor()
    for width in range(1, 5):
        for height in range(1, 5):
            pixels = processor(picture(width, height))
            assert pixels.shape == (1, 3, 224, 224)
            assert np.isfinite(pixels).all()


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims a size and holds nothing."""
    chunk = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk))
    return b"\x89PNG\r\n\x1a\n" + body + b"\0\0\0\0IDAT\x35\xaf\x06\x1e"


def zip_file() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("picture.png", encoded(picture()))
    return buffer.getvalue()


HOSTILE = {
    "empty.png": b"",
    "text.jpg": b"hello, I am a picture\n" * 50,
    "page.png": b"<html><body><img src='x.png'></body></html>",
    "drawing.png": b"<svg xmlns='http://www.w3.org/2000/svg'/>",
    "archive.jpg": zip_file(),
    "random.png": np.random.default_rng(5).bytes(5000),
    "magic-only.png": b"\x89PNG\r\n\x1a\n",
    "magic-only.jpg": b"\xff\xd8\xff",
    "magic-only.webp": b"RIFF\x10\0\0\0WEBPVP8 ",
    "nothing-inside.png": png_header(16, 16),
    "bomb.png": png_header(50_000, 50_000),
    "over-the-limit.png": png_header(12_000, 10_001),
    "no-width.png": png_header(0, 10),
    "huge-side.png": png_header(2**31 - 1, 2**31 - 1),
    "ribbon.png": png_header(10_000, 2),
    "pole.png": png_header(2, 10_000),
    "bomb.gif": b"GIF89a\xff\xff\xff\xff\x80\0\0\0\0\0\xff\xff\xff,\0\0\0\0\xff\xff\xff\xff\0\x02\x02D\x01\0;",
    "giant-frame.gif": b"GIF89a\1\0\1\0\x80\0\0\0\0\0\xff\xff\xff,\0\0\0\0\xff\xff\xff\xff\0\x02\x02D\x01\0;",
    "bomb.bmp": b"BM" + struct.pack("<IHHIIiiHHIIIIII", 54, 0, 0, 54, 40, 60_000, 60_000, 1, 24, *[0] * 6),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_files_are_refused_by_name(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(HOSTILE[name])
    with pytest.raises(ImageError) as caught:
        load_image(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert "0x" not in str(caught.value)
    assert "Image" not in str(caught.value)  # no names or addresses of Pillow's objects


@pytest.mark.parametrize(
    "name", ["bomb.png", "over-the-limit.png", "ribbon.png", "bomb.gif", "giant-frame.gif", "bomb.bmp"]
)
def test_limits_are_checked_before_decoding(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def decode(self: object) -> None:
        raise AssertionError("decoded")

    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", decode)
    with pytest.raises(ImageError, match="pixels"):
        load_image(HOSTILE[name])


def test_limits_hold_for_images_in_memory_and_can_be_changed() -> None:
    ribbon = PIL.Image.new("RGB", (102, 2))
    for source in (ribbon, np.asarray(ribbon), encoded(ribbon)):
        with pytest.raises(ImageError, match="102 x 2 pixels; the longer side may be at most 50 times"):
            load_image(source)
        assert load_image(source, limits=Limits(max_aspect_ratio=51)).size == (102, 2)
        assert load_image(source, limits=Limits(max_aspect_ratio=51, max_pixels=204)).size == (102, 2)
        with pytest.raises(ImageError, match="at most 203 are allowed"):
            load_image(source, limits=Limits(max_aspect_ratio=51, max_pixels=203))
    data = encoded(picture())
    assert load_image(data, limits=Limits(max_image_bytes=len(data))).size == (60, 40)
    for source in (data, io.BytesIO(data)):
        with pytest.raises(ImageError, match=f"more than {len(data) - 1} bytes"):
            load_image(source, limits=Limits(max_image_bytes=len(data) - 1))


def refusal(data: bytes) -> str | None:
    """The message of the ``ImageError`` that these bytes cause, or None; any other exception is a failure."""
    try:
        load_image(data)
    except ImageError as error:
        return str(error)
    return None


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("image_format", FORMATS)
def test_truncated_files_are_refused(image_format: str) -> None:
    whole = encoded(picture(), image_format)
    cuts = range(0, len(whole) - 1, max(1, len(whole) // 60))
    messages = [message for cut in cuts if (message := refusal(whole[:cut]))]
    assert len(messages) > 40  # all but cuts behind the last pixel
    assert all(message.startswith("encoded bytes: ") for message in messages)


@settings(max_examples=examples(150), deadline=None)
@given(st.sampled_from(FORMATS), st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), min_size=1, max_size=8))
@pytest.mark.filterwarnings("ignore")
def test_damaged_files_raise_image_errors_only(image_format: str, changes: list[tuple[float, int]]) -> None:
    data = bytearray(encoded(picture(), image_format))
    for position, value in changes:
        data[int(position * (len(data) - 1))] = value
    assert "0x" not in (refusal(bytes(data)) or "")


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("no/such/file.jpg", "no/such/file.jpg: No such file or directory"),
        (".", ".: expected a regular file, got a folder"),
        ("nul\0.jpg", "embedded null (byte|character)"),
        ("https://example.com/cat.jpg", "URLs are never fetched"),
        ("HTTP://127.0.0.1/", "URLs are never fetched"),
        ("file:///etc/passwd", "URLs are never fetched"),
        ("data:image/png;base64,AAAA", "URLs are never fetched"),
        (io.StringIO("text"), "binary mode"),
        (3, "expected a path, bytes, a binary file object, a PIL image or a uint8 array, got int"),
        (None, "got NoneType"),
        (np.zeros((2, 8, 9), np.uint8), r"got uint8 of shape \(2, 8, 9\)"),
        (np.zeros((8, 9, 3), np.float32), "expected uint8 .* got float32 .* scale floats to 0..255"),
        (np.zeros((0, 9, 3), np.uint8), "9 x 0 pixels"),
    ],
)
def test_bad_sources(source: object, message: str) -> None:
    with pytest.raises(ImageError, match=message):
        load_image(source)


def test_a_lazily_opened_damaged_image() -> None:
    image = PIL.Image.open(io.BytesIO(encoded(picture(300, 300))[:-4000]))
    with pytest.raises(ImageError, match="damaged"):
        load_image(image)


def test_errors_in_a_batch_give_the_index() -> None:
    with pytest.raises(ImageError, match=r"images\[1\]: missing.jpg: No such file"):
        ImageProcessor()([picture(), "missing.jpg"])
    with pytest.raises(ImageError, match="empty list"):
        ImageProcessor()([])


@pytest.mark.parametrize("image_format", ["PNG", "JPEG", "GIF", "TIFF", "WEBP"])
@pytest.mark.parametrize("loaded", [False, True])
def test_closed_images_are_told(image_format: str, loaded: bool, tmp_path: Path) -> None:
    from gitfast.inputs.video import load_clip

    PIL.Image.new("RGB", (5, 5)).save(tmp_path / "x", image_format, save_all=image_format in ("GIF", "TIFF", "WEBP"))
    image = PIL.Image.open(tmp_path / "x")
    if loaded:
        image.load()
    image.close()
    for read in (load_image, load_clip):
        with pytest.raises(ImageError, match=r"^image: a PIL image that was closed"):
            read(image)


# Settings


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"feature_extractor_type": "CLIPFeatureExtractor", "size": 224, "crop_size": 224, "resample": 3},
        {"image_processor_type": "CLIPImageProcessorFast", "data_format": None, "do_convert_rgb": False},
        {"image_processor_type": "CLIPImageProcessorPil", "device": "cpu", "default_to_square": False},
        ImageProcessor().to_dict(),
    ],
)
def test_spellings_of_the_same_settings(values: dict) -> None:
    assert ImageProcessor.from_dict(values) == ImageProcessor()


def test_legacy_video_settings_take_video_defaults() -> None:
    video = ImageProcessor.for_config(SHAPES["git-base-vatex"])
    assert ImageProcessor.from_dict({"feature_extractor_type": "VideoMAEFeatureExtractor"}) == video
    assert (video.resample, video.image_mean) == ("bilinear", (0.5, 0.5, 0.5))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"image_processor_type": "ViTImageProcessor"}, "expected CLIPImageProcessor or VideoMAEImageProcessor"),
        ({"image_processor_type": 7}, "image_processor_type"),
        ({"size": 0}, "size: expected pixels from 1"),
        ({"size": 10**9}, "size: expected pixels"),
        ({"size": True}, "size: expected pixels"),
        ({"size": {"longest_edge": 5}}, "size: expected an integer"),
        ({"size": {"shortest_edge": "224"}}, "size.shortest_edge"),
        ({"size": "224"}, "size: expected"),
        ({"crop_size": {"shortest_edge": 224}}, "crop_size: expected"),
        ({"crop_size": [224]}, "crop_size: expected"),
        ({"resample": 6}, "resample: expected"),
        ({"resample": "bicubic"}, "resample: expected"),
        ({"image_mean": [0.5, 0.5]}, "image_mean: expected three numbers"),
        ({"image_mean": [0.5, 0.5, float("nan")]}, "image_mean: expected three numbers"),
        ({"image_std": [0.5, 0.5, 0]}, "image_std: expected no zero"),
        ({"rescale_factor": "1/255"}, "rescale_factor: expected a number"),
        ({"do_resize": "yes"}, "do_resize: expected true or false"),
        ({"do_pad": True}, "do_pad"),
    ],
)
def test_impossible_settings(values: dict, message: str, tmp_path: Path) -> None:
    path = tmp_path / "preprocessor_config.json"
    path.write_text(json.dumps(values))
    with pytest.raises(ConfigError, match=message) as caught:
        ImageProcessor.from_file(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("name", ["git-base", "git-base-vqav2", "git-base-vatex"])
def test_files_that_transformers_saves(name: str, tmp_path: Path) -> None:
    from transformers import CLIPImageProcessorPil, VideoMAEImageProcessorPil

    values = published_settings(name)
    theirs = VideoMAEImageProcessorPil if name.endswith("vatex") else CLIPImageProcessorPil
    theirs(**values).save_pretrained(tmp_path)
    expected = ImageProcessor.for_config(SHAPES[name])
    assert ImageProcessor.from_file(tmp_path / "preprocessor_config.json") == expected
    nested = tmp_path / "processor_config.json"
    nested.write_text(json.dumps({"processor_class": "GitProcessor", "image_processor": values}))
    assert ImageProcessor.from_file(nested) == expected
    saved = tmp_path / "ours.json"
    saved.write_text(json.dumps(expected.to_dict()))
    assert ImageProcessor.from_file(saved) == expected
    assert_identical(expected(picture())[0], transformers_pixels(expected.to_dict(), picture()))


# Microsoft's own preprocessing


@pytest.mark.parametrize(
    ("size", "expected"),  # (width, height), worked out by hand
    [
        ((640, 480), (640, 480)),
        ((480, 640), (480, 640)),
        ((500, 500), (480, 480)),
        ((1000, 500), (640, 320)),  # 480 would make the longer side 960; round(640 * 500 / 1000)
        ((427, 640), (427, 640)),  # 640 is reached: the shorter side stays at round(640 * 427 / 640)
        ((100, 90), (533, 480)),
    ],
)
def test_original_question_answering_keeps_the_aspect_ratio(size: tuple[int, int], expected: tuple[int, int]) -> None:
    processor = ImageProcessor.original(SHAPES["git-base-vqav2"])
    pixels = processor(picture(*size))
    assert pixels.shape == (1, 3, expected[1], expected[0])
    width, height = expected
    same = {"size": {"height": height, "width": width}, "do_center_crop": False}
    assert_identical(pixels[0], transformers_pixels(same, picture(*size)))


def test_original_large_and_video_settings() -> None:
    large = ImageProcessor.original(SHAPES["git-large-textvqa"])
    assert (large.size, large.max_size, large.crop_size) == (420, 560, None)
    video = ImageProcessor.original(SHAPES["git-large-vatex"])
    assert (video.resample, video.image_mean, video.image_std) == ("bicubic", tuple(CLIP_MEAN), tuple(CLIP_STD))
    assert (large.rounding, large.min_edge) == ("original", 14)
    same = ImageProcessor.from_dict(large.to_dict())  # but for what a file cannot say
    assert ImageProcessor(**{**vars(same), "rounding": "original", "min_edge": 14}) == large


def test_original_crop_halves_odd_margins_to_even() -> None:
    """torchvision: int(round(margin / 2)); a margin of 7 begins at 4, where transformers begins at 3."""
    columns = np.broadcast_to(np.arange(31, dtype=np.uint8)[None, :, None], (24, 31, 3))
    floor = ImageProcessor(size=None, crop_size=(24, 24), image_mean=None, image_std=None, rescale_factor=1.0)
    original = ImageProcessor(**{**vars(floor), "rounding": "original"})
    assert (floor(columns)[0, 0, 0, 0], original(columns)[0, 0, 0, 0]) == (3, 4)


def test_different_sizes_do_not_make_one_batch() -> None:
    processor = ImageProcessor.original(SHAPES["git-base-vqav2"])
    with pytest.raises(ImageError, match=r"these settings give different sizes: \[\(480, 480\), \(320, 640\)\]"):
        processor([picture(50, 50), picture(100, 50)])


def test_reading_modules_import_nothing_heavy() -> None:
    code = (
        "import sys, gitfast.inputs.processor; "
        "print([m for m in ('PIL', 'av', 'tokenizers', 'torch', 'transformers') if m in sys.modules])"
    )
    done = run_python(code, check=True)
    assert done.stdout.strip() == "[]"
