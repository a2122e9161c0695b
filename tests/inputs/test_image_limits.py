"""Images within their limits: bounded in bytes, pixels, scans, frames and pages before anything is decoded."""

from __future__ import annotations

import io
import re
import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

import gitfast
from gitfast.errors import ArgumentError, ImageError, VideoError
from gitfast.inputs import formats
from gitfast.inputs.image import ImageProcessor
from gitfast.inputs.limits import DEFAULT_LIMITS, Limits
from gitfast.inputs.pictures import load_image
from gitfast.inputs.video import load_clip

from support.processes import run_python


def picture(width: int = 60, height: int = 40) -> PIL.Image.Image:
    return PIL.Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8))


def encoded(image: PIL.Image.Image, image_format: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, image_format, **options)
    return buffer.getvalue()


@pytest.fixture
def no_decoding(monkeypatch: pytest.MonkeyPatch) -> None:
    """Any decoding of pixels fails the test: what is refused is refused before."""

    def decode(self: object) -> None:
        raise AssertionError("decoded")

    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", decode)
    monkeypatch.setattr("PIL.TiffImagePlugin.TiffImageFile.load", decode)


# The limits themselves


def test_limits_are_public_and_checked() -> None:
    assert gitfast.Limits is Limits
    assert Limits(max_pixels=np.int64(5)).max_pixels == 5
    for values in ({"max_pixels": 0}, {"max_pixels": 2.5}, {"max_pixels": True}, {"max_video_seconds": float("nan")}):
        (name,) = values
        with pytest.raises(ArgumentError, match=f"{name}: expected"):
            Limits(**values)


def test_photographs_and_videos_of_today_are_within_the_defaults() -> None:
    for size in ((8165, 6164), (12000, 9000)):  # 50.33 and 108 megapixels
        DEFAULT_LIMITS.check_size(size, "photograph")
    for size in ((5120, 2880), (7680, 4320)):
        DEFAULT_LIMITS.check_size(size, "frame", "max_frame_pixels")
    assert DEFAULT_LIMITS.max_image_bytes >= 25_000_000
    assert DEFAULT_LIMITS.max_video_seconds > 60.04


# JPEG


def progressive(width: int, height: int, scans: int) -> bytes:
    """A progressive JPEG whose last scan comes again and again."""
    data = encoded(PIL.Image.new("L", (width, height), 100), "JPEG", progressive=True)[:-2]
    last = data[[match.start() for match in re.finditer(b"\xff\xda", data)][-1] :]
    return data + last * (scans - data.count(b"\xff\xda")) + b"\xff\xd9"


@pytest.mark.usefixtures("no_decoding")
def test_scans_of_a_jpeg_are_bounded() -> None:
    for source in (progressive(64, 64, 100_000), PIL.Image.open(io.BytesIO(progressive(64, 64, 100_000)))):
        with pytest.raises(ImageError, match="a JPEG of more than 1000 scans"):
            load_image(source)
    with pytest.raises(ImageError, match=r"900 scans of 4000 x 4000 pixels; at most 2000000000 pixels are decoded"):
        load_image(progressive(4000, 4000, 900))


def test_scans_are_counted_where_they_are() -> None:
    """Films and previews behind the picture, and bytes of its metadata that look like scans, are none."""
    plain = encoded(picture(), "JPEG", progressive=True)
    expected = np.asarray(load_image(plain))
    film = plain + b"\xff\xda\0\2" * 5000
    thumbnail = plain[:2] + b"\xff\xe1" + struct.pack(">H", 2 + 4 * 5000) + b"\xff\xda\0\2" * 5000 + plain[2:]
    limits = Limits(max_decoded_pixels=60 * 40 * 20)
    for data in (film, thumbnail, progressive(60, 40, 20)):
        assert load_image(data, limits=limits).size == (60, 40)
    np.testing.assert_array_equal(np.asarray(load_image(film)), expected)
    with pytest.raises(ImageError, match="max_decoded_pixels"):
        load_image(progressive(60, 40, 21), limits=limits)


def test_segments_of_a_jpeg_are_bounded() -> None:
    data = encoded(picture(), "JPEG")
    with pytest.raises(ImageError, match="or 10000 segments"):
        load_image(data[:2] + b"\xff\xfe\0\2" * 1_000_000 + data[2:])


# PNG


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


MEGABYTES = b"x" * 5_000_000


@pytest.mark.parametrize(
    "metadata",
    [
        chunk(b"zTXt", b"Comment\0\0" + zlib.compress(MEGABYTES)),
        chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + zlib.compress(MEGABYTES)),
        chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + MEGABYTES),
        chunk(b"tEXt", b"parameters\0" + MEGABYTES) * 14,
        chunk(b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(MEGABYTES)),
        chunk(b"zTXt", b"workflow\0\7strange"),
        chunk(b"iCCP", b"profile\0\0" + zlib.compress(MEGABYTES)),
        chunk(b"iCCP", b"profile\0\7strange"),
        chunk(b"tEXt", b"Comment\0broken checksum")[:-1] + b"?",
    ],
    ids=["zTXt", "XMP", "plain XMP", "tEXt", "EXIF", "method", "ICC", "ICC method", "checksum"],
)
def test_metadata_of_a_png_never_hides_its_pixels(metadata: bytes) -> None:
    """The picture is as transformers would see it, if Pillow let it."""
    data = encoded(picture(), "PNG")
    with_metadata = data[:33] + metadata + data[33:]
    np.testing.assert_array_equal(np.asarray(load_image(with_metadata)), np.asarray(picture()))


def test_orientations_in_texts_of_a_png_are_kept() -> None:
    xmp = b'<x:xmpmeta><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
    data = encoded(picture(), "PNG")
    for body in (b"\0\0\0\0" + xmp, b"\1\0\0\0" + zlib.compress(xmp)):
        turned = load_image(data[:33] + chunk(b"iTXt", b"XML:com.adobe.xmp\0" + body) + data[33:])
        np.testing.assert_array_equal(np.asarray(turned), np.asarray(picture().transpose(PIL.Image.ROTATE_270)))


@pytest.mark.usefixtures("no_decoding")
def test_chunks_of_a_png_are_bounded() -> None:
    data = encoded(picture(), "PNG")
    with pytest.raises(ImageError, match="a PNG of more than 200000 chunks"):
        load_image(data[:33] + chunk(b"teXt", b"") * 300_000 + data[33:])


# GIF, WebP


def gif(*frames: tuple[int, int], canvas: tuple[int, int] = (64, 64)) -> bytes:
    """A GIF of frames of one black pixel's data, which claim these sizes."""
    body = b"".join(b",\0\0\0\0" + struct.pack("<HHB", *size, 0) + b"\2\2D\1\0" for size in frames)
    return b"GIF89a" + struct.pack("<HHBBB", *canvas, 0x80, 0, 0) + b"\0\0\0\xff\xff\xff" + body + b";"


@pytest.mark.usefixtures("no_decoding")
def test_later_frames_of_a_gif_are_checked_before_the_first_is_decoded() -> None:
    data = gif((64, 64), (13_000, 13_000))
    for source in (data, PIL.Image.open(io.BytesIO(data))):
        with pytest.raises(VideoError, match="13000 x 13000 pixels; at most 120000000"):
            load_clip(source)


def test_a_still_reads_no_later_frame_of_a_gif() -> None:
    assert load_image(encoded(picture(), "GIF")[:-1] + gif((13_000, 13_000))[19:]).size == (60, 40)


@pytest.mark.usefixtures("no_decoding")
def test_frames_walked_are_bounded() -> None:
    with pytest.raises(VideoError, match="1834 frames of 2990 x 2990 pixels; at most 2000000000 pixels are decoded"):
        load_clip(gif(*[(1, 1)] * 2000, canvas=(2990, 2990)))
    with pytest.raises(VideoError, match="more than 1999 frames"):
        load_clip(gif(*[(1, 1)] * 2000), limits=Limits(max_video_frames=1999))


@pytest.mark.usefixtures("no_decoding")
@pytest.mark.parametrize("filling", [b"\0" * 3_000_000, b"!\xfe" + b"\1c" * 3_000_000 + b"\0", b"!\xfe\0" * 3_000_000])
def test_blocks_of_a_gif_are_bounded(filling: bytes) -> None:
    data = gif((64, 64))
    with pytest.raises(ImageError, match="a GIF of more than 2000000 blocks"):
        load_image(data[:19] + filling + data[19:])


def test_the_canvas_of_a_webp_is_checked_before_its_decoder_takes_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    frames = [PIL.Image.new("RGB", (20, 20), colour) for colour in ("red", "lime")]
    data = bytearray(encoded(frames[0], "WEBP", save_all=True, append_images=frames[1:]))
    assert load_image(bytes(data), limits=Limits(max_pixels=400)).size == (20, 20)
    data[24:30] = (16_000).to_bytes(3, "little") * 2
    monkeypatch.setattr("PIL.WebPImagePlugin.WebPImageFile", None)
    with pytest.raises(ImageError, match="16001 x 16001 pixels"):
        load_image(bytes(data))
    for image in (picture(20_000 // 50, 20), picture(300, 200)):
        for options in ({}, {"lossless": True}):
            claim = formats.inspect(encoded(image, "WEBP", **options), "WEBP", "x", Limits(), frames=False)
            assert claim.size == image.size


# TIFF


def tiff(*pages: dict[int, int], entries: int = 0) -> bytes:
    """Directories one after another that claim these tags, each with ``entries`` more that mean nothing."""
    data = b"II*\0" + struct.pack("<I", 8)
    for number, tags in enumerate(pages, 1):
        listed = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in sorted(tags.items()))
        listed += struct.pack("<HHII", 60000, 4, 1, 0) * entries
        offset = len(data) + 2 + len(listed) + 4
        count = struct.pack("<H", len(tags) + entries)
        data += count + listed + struct.pack("<I", offset if number < len(pages) else 0)
    return data


PAGE = {256: 8, 257: 8, 258: 8, 262: 1, 273: 0, 277: 1, 279: 64}


@pytest.mark.usefixtures("no_decoding")
def test_pages_of_a_tiff_are_bounded() -> None:
    many = (
        b"II*\0"
        + struct.pack("<I", 8)
        + b"".join(struct.pack("<HHHIII", 1, 256, 4, 1, 8, 8 + 18 * page) for page in range(1, 170_001))
    )
    for source in (many, PIL.Image.open(io.BytesIO(tiff(*[PAGE] * 40_000)))):
        with pytest.raises(VideoError, match=r"more than (36000 frames|200000 directory entries)"):
            load_clip(source)
    with pytest.raises(VideoError, match="30000 x 30000 pixels"):
        load_clip(tiff(PAGE, PAGE | {256: 30_000, 257: 30_000}))
    with pytest.raises(ImageError, match="tiles of 900000000 pixels"):
        load_image(tiff(PAGE | {322: 30_000, 323: 30_000}))
    overlapping = tiff(PAGE, PAGE, PAGE, PAGE, entries=60_000)
    with pytest.raises(VideoError, match="more than 200000 directory entries"):
        load_clip(overlapping)
    far = b"II+\0\x08\0\0\0" + b"\xff" * 8 + bytes(40)
    with pytest.raises(ImageError, match="not an image"):
        load_image(far)
    circle = tiff(PAGE, PAGE)[:-4] + struct.pack("<I", 8)
    assert formats.inspect(circle, "TIFF", "x", Limits(), frames=True).frames == 2


def test_pages_of_a_tiff_are_read() -> None:
    pages = [PIL.Image.new("L", (20, 20), 30 * index) for index in range(5)]
    for options in ({}, {"compression": "tiff_lzw"}, {"big_tiff": True}):
        data = encoded(pages[0], "TIFF", save_all=True, append_images=pages[1:], **options)
        for source in (data, PIL.Image.open(io.BytesIO(data))):
            clip = load_clip(source, num_frames=5)
            assert [np.asarray(frame).max() for frame in clip] == [0, 30, 60, 90, 120]


# BMP


@pytest.mark.usefixtures("no_decoding")
def test_run_lengths_of_a_bmp_are_bounded() -> None:
    header = b"BM" + struct.pack("<IHHIIiiHHIIIIII", 54, 0, 0, 1078, 40, 10_000, 10_000, 1, 8, 1, *[0] * 5)
    with pytest.raises(ImageError, match="10000 x 10000 pixels; at most 16000000 of a run-length encoded BMP"):
        load_image(header + bytes(1024))


# Warnings


def metadata_warnings(count: int) -> bytes:
    """A grey TIFF about each of whose wrong entries Pillow warns."""
    good = encoded(PIL.Image.new("L", (8, 8), 77), "TIFF")
    (offset,) = struct.unpack_from("<I", good, 4)
    (entries,) = struct.unpack_from("<H", good, offset)
    bad = b"".join(struct.pack("<HHII", 50_000 + index, 2, 1 << 30, 8) for index in range(count))
    listed = good[offset + 2 : offset + 2 + 12 * entries] + bad
    return good[:4] + struct.pack("<I", len(good)) + good[8:] + struct.pack("<H", entries + count) + listed + b"\0" * 4


@pytest.mark.parametrize("handed_over", [bytes, lambda data: PIL.Image.open(io.BytesIO(data))])
def test_a_file_prints_at_most_one_line(handed_over) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        source = handed_over(metadata_warnings(5_000))
        caught.clear()  # those of the application's own Image.open
        assert load_image(source).getpixel((3, 3)) == (77, 77, 77)
    assert len(caught) <= 1
    if isinstance(source, bytes):
        assert re.fullmatch(r"encoded bytes: .{10,200} \(and \d{4,5} more\)", str(caught[0].message))


def test_warnings_of_the_application_itself_stay() -> None:
    load_image(metadata_warnings(3))
    with pytest.warns(UserWarning, match="Tag data larger than file") as caught:
        PIL.Image.open(io.BytesIO(metadata_warnings(3))).load()
    assert len(caught) > 1


@pytest.mark.parametrize("kind", [0, 14, 16, 17, 18, 19])  # 16 to 18 are of big files alone
def test_entries_of_unknown_types_are_bounded(kind: int, no_decoding: None) -> None:
    """libtiff prints lines for each, past every handler of Python."""
    noisy = metadata_warnings(200).replace(struct.pack("<HI", 2, 1 << 30), struct.pack("<HI", kind, 1 << 30))
    with pytest.raises(ImageError, match="a TIFF of more than 100 directory entries of unknown types"):
        load_image(noisy)


def fax(rows: int, compression: int = 3) -> bytes:
    """A page of noise, fax-coded: libtiff prints a line for each damaged row."""
    data = np.random.default_rng(0).bytes(60 * rows)
    page = {256: 1600, 257: rows, 258: 1, 259: compression, 262: 0, 273: 134, 277: 1, 278: rows, 279: len(data)}
    return tiff(page | {292: 0}) + data  # the head has 134 bytes


@pytest.mark.parametrize("handed_over", [bytes, lambda data: PIL.Image.open(io.BytesIO(data))])
def test_rows_of_a_fax_are_bounded(handed_over, no_decoding: None) -> None:
    for compression in (2, 3, 4, 32771):
        with pytest.raises(ImageError, match="a fax-coded TIFF of 20001 rows; at most 20000 are decoded"):
            load_image(handed_over(fax(20_001, compression)))
    with pytest.raises(ImageError, match="a fax-coded TIFF of 20001 rows"):  # the tag twice, or with two values
        load_image(fax(20_001).replace(struct.pack("<HHI", 277, 4, 1), struct.pack("<HHI", 259, 4, 1)))
    with pytest.raises(ImageError, match="a fax-coded TIFF of 20001 rows"):
        load_image(fax(20_001).replace(struct.pack("<HHI", 259, 4, 1), struct.pack("<HHI", 259, 4, 2)))
    page = PAGE | {257: 5_001, 259: 4}
    with pytest.raises(VideoError, match="a fax-coded TIFF of 20004 rows"):
        load_clip(tiff(page, page, page, page))


def test_lines_of_libtiff_are_bounded(tmp_path: Path) -> None:
    (tmp_path / "x.tif").write_bytes(fax(20_000))
    code = "import sys; from gitfast.inputs.pictures import load_image; print(load_image(sys.argv[1]).height)"
    ended = run_python(code, tmp_path / "x.tif")
    assert (ended.returncode, ended.stdout) == (0, "20000\n")
    assert 2_000 < len(ended.stderr.splitlines()) <= 20_000


def test_documents_that_are_fax_coded_are_read() -> None:
    page = PIL.Image.fromarray(np.random.default_rng(0).random((3508, 2480)) < 0.05)
    for compression in ("group3", "group4", "tiff_ccitt"):
        data = encoded(page, "TIFF", compression=compression)
        for source in (data, PIL.Image.open(io.BytesIO(data))):
            assert load_image(source).tobytes() == page.convert("RGB").tobytes()


@pytest.mark.parametrize("image_format", formats.FORMATS)
def test_pillows_own_limit_is_silent(image_format: str, monkeypatch: pytest.MonkeyPatch) -> None:
    data = encoded(picture(), image_format)
    monkeypatch.setattr("PIL.Image.MAX_IMAGE_PIXELS", 60 * 40 - 1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert load_image(data).size == (60, 40)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        image = PIL.Image.open(io.BytesIO(data))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert load_image(image).size == (60, 40)


def test_nothing_of_pillow_reaches_stderr(tmp_path) -> None:
    (tmp_path / "large.tif").write_bytes(encoded(picture(), "TIFF"))
    (tmp_path / "noisy.tif").write_bytes(metadata_warnings(1000))
    code = (
        "import sys, PIL.Image; from gitfast.inputs.image import ImageProcessor; PIL.Image.MAX_IMAGE_PIXELS = 2000;"
        "ImageProcessor()(sys.argv[1:] * 4)"
    )
    done = run_python(code, tmp_path / "large.tif", tmp_path / "noisy.tif", check=True)
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    assert len(lines) <= 4  # one for each time that the noisy one is read
    assert all("noisy.tif" in line for line in lines)


def test_faults_are_named() -> None:
    truncated = PIL.Image.open(io.BytesIO(encoded(picture(300, 300), "PNG")[:-4000]))
    with pytest.raises(ImageError, match="damaged or truncated PNG data"):
        load_image(truncated)


# Targets


def test_targets_are_bounded_like_sources() -> None:
    thin = picture(50, 1)
    with pytest.raises(ImageError, match="50 x 1 pixels would be resized at 204800 x 4096; at most 67108864"):
        ImageProcessor.from_dict({"size": {"shortest_edge": 4096}})(thin)
    whole = ImageProcessor.from_dict({"do_resize": False, "do_center_crop": False})
    with pytest.raises(ImageError, match="7000 x 7000 pixels would be used at 7000 x 7000; at most 4194304"):
        whole(PIL.Image.new("RGB", (7000, 7000)))
    assert whole(PIL.Image.new("RGB", (30, 20))).shape == (1, 3, 20, 30)
    with pytest.raises(ImageError, match="would be used at 4096 x 4096"):
        ImageProcessor.from_dict({"size": 64, "crop_size": 4096})(thin)
    with pytest.raises(ImageError, match=r"50 x 1 pixels become 750 x 15; the model reads patches of 16"):
        ImageProcessor(size=15, crop_size=None, min_edge=16)([thin])
