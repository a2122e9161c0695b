"""The claims of encoded pictures, read before a decoder sees them: the work that decoding would take.

Decoders bound neither the scans of a JPEG nor the chunks of a PNG, the pages of a TIFF or the size of a later frame of
a GIF. Each walk here is itself bounded, and reads damaged files as far as they can be read: faults
are the decoder's to report.
"""

from __future__ import annotations

import math
import re
import struct
import zlib
from dataclasses import dataclass

from gitfast.errors import ImageError
from gitfast.inputs.limits import Limits

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")

MAX_SCANS = 1000  # in a progressive JPEG; encoders write about ten
MAX_SEGMENTS = 10_000  # in a JPEG; 16 MB of metadata has 256
MAX_CHUNKS = 200_000  # in a PNG; 100 MB in chunks of 8 KiB has 12,000
MAX_BLOCKS = 2_000_000  # in a GIF; full ones have 255 bytes
MAX_ENTRIES = 200_000  # in all directories of a TIFF; a page has about twenty
# libtiff prints lines of its own. Its handlers of messages belong to all who use it: here what it prints is bounded.
MAX_UNKNOWN_TYPES = 100  # directory entries of types that this kind of TIFF does not have: two lines for each
MAX_FAX_ROWS = 20_000  # of all pages of a fax-coded TIFF: a line for each damaged one. A0 at 400 dpi has 18,700
MAX_RUN_LENGTH_PIXELS = 16_000_000  # in a run-length encoded BMP, which Pillow decodes in Python
MAX_METADATA_BYTES = 1 << 20  # in one decompressed text of a PNG that may hold the orientation

# Chunks that decide the pixels of a PNG and their orientation. Colour profiles are not applied.
_PIXEL_CHUNKS = {b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND", b"eXIf", b"acTL", b"fcTL", b"fdAT"}
_ORIENTATION_TEXTS = (b"XML:com.adobe.xmp\0", b"Raw profile type exif\0", b"Raw profile type APP1\0")
_JPEG_MARKER = re.compile(rb"\xff+([\x01-\xcf\xd8-\xfe])")  # no stuffed zero, no restart
_TIFF_FAX = (2, 3, 4, 32771)  # values of the tag that names the compression
_TIFF_TYPE_BYTES = {1: 1, 2: 1, 3: 2, 4: 4, 6: 1, 7: 1, 8: 2, 9: 4, 11: 4, 16: 8}


@dataclass(frozen=True)
class Claim:
    """The claims of a file about itself.

    Attributes:
        size: (width, height) of its largest frame; None where only its decoder knows.
        frames: Frames of an animation; 1 for other pictures; None where only its decoder knows.
        scans: Passes over the pixels that decoding takes.
    """

    size: tuple[int, int] | None = None
    frames: int | None = 1
    scans: int = 1


def sniff(header: bytes) -> str | None:
    """Tell the format of a picture by its first 12 bytes; None for anything else."""
    if header.startswith(b"\xff\xd8\xff"):
        return "JPEG"
    if header.startswith(b"\x89PNG\r\n\x1a\n"):
        return "PNG"
    if header.startswith(b"RIFF") and header[8:12] == b"WEBP":
        return "WEBP"
    if header.startswith((b"GIF87a", b"GIF89a")):
        return "GIF"
    if header.startswith(b"BM"):
        return "BMP"
    # Classic and big TIFF, and two in which writers mixed up the byte order.
    if header.startswith((b"II*\0", b"MM\0*", b"II+\0", b"MM\0+", b"MM*\0", b"II\0*")):
        return "TIFF"
    return None


def inspect(data: bytes, image_format: str, name: str, limits: Limits, *, frames: bool) -> Claim:
    """Check what decoding would cost.

    Args:
        data: The whole file.
        image_format: As ``sniff`` found.
        name: The file's name, for messages.
        limits: Limits on its cost.
        frames: True if later frames of an animation are to be decoded, too.

    Raises:
        ImageError: the file exceeds a limit.
    """
    if image_format == "JPEG":
        claim = _walk_jpeg(data, name)
    elif image_format == "GIF":
        claim = _walk_gif(data, name, all_frames=frames)
    elif image_format == "TIFF":
        claim = _walk_tiff(data, name, limits, all_pages=frames)
    elif image_format == "WEBP":
        claim = Claim(size=_webp_size(data), frames=None)
    else:
        if image_format == "BMP":
            _check_bmp(data, name)
        claim = Claim(frames=None if image_format == "PNG" else 1)
    if claim.size is not None:
        limits.check_size(claim.size, name)
        limits.check_decoded(claim.size, claim.scans, "scans", name)
    return claim


def _u16(data: bytes, position: int) -> int:
    return int.from_bytes(data[position : position + 2], "little")


def _walk_jpeg(data: bytes, name: str) -> Claim:
    position, segments, scans = 2, 0, 0
    size = None
    while match := _JPEG_MARKER.search(data, position):
        marker, position = data[match.end() - 1], match.end()
        if marker == 0xD9:  # the end of the picture; behind it phones put films and previews
            break
        segments += 1
        scans += marker == 0xDA
        if scans > MAX_SCANS or segments > MAX_SEGMENTS:
            raise ImageError(f"{name}: a JPEG of more than {MAX_SCANS} scans or {MAX_SEGMENTS} segments")
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC) and size is None:
            height, width = struct.unpack(">HH", data[position + 3 : position + 7].ljust(4, b"\0"))
            size = (width, height)
        if marker not in (0x01, 0xD8):  # these stand alone
            position += max(2, int.from_bytes(data[position : position + 2], "big"))
    return Claim(size=size, scans=max(1, scans))


def clean_png(data: bytes, name: str) -> bytes:
    """Remove the chunks that pixels do not depend on: texts and profiles, of whatever size or damage.

    Raises:
        ImageError: too many chunks.
    """
    kept: list[tuple[int, int]] = []
    dropped = False
    position, chunks = 8, 0
    while position + 12 <= len(data):
        chunks += 1
        if chunks > MAX_CHUNKS:
            raise ImageError(f"{name}: a PNG of more than {MAX_CHUNKS} chunks")
        length, kind = struct.unpack(">I4s", data[position : position + 8])
        end = min(position + 12 + length, len(data))
        if kind in _PIXEL_CHUNKS or not kind[0] & 0x20 or _has_orientation(kind, data[position + 8 : end - 4]):
            kept.append((position, end))
        else:
            dropped = True
        position = end
        if kind == b"IEND":
            break
    if not dropped:
        return data
    view = memoryview(data)
    return b"".join([view[:8], *(view[begin:end] for begin, end in kept), view[position:]])


def _has_orientation(kind: bytes, chunk: bytes) -> bool:
    """Return whether a text chunk may hold EXIF or XMP, and is small."""
    if kind not in (b"tEXt", b"zTXt", b"iTXt") or not chunk.startswith(_ORIENTATION_TEXTS):
        return False
    if len(chunk) > MAX_METADATA_BYTES:
        return False
    body = chunk[chunk.index(b"\0") + 1 :]
    if kind == b"zTXt":
        return body[:1] == b"\0" and _inflates_to_little(body[1:])
    if kind == b"iTXt" and body[:1] not in (b"", b"\0"):
        return body[1:2] == b"\0" and _inflates_to_little(body[2:].split(b"\0", 2)[-1])
    return True


def _inflates_to_little(data: bytes) -> bool:
    stream = zlib.decompressobj()
    try:
        stream.decompress(data, MAX_METADATA_BYTES)
    except zlib.error:
        return False
    return not stream.unconsumed_tail


def _walk_gif(data: bytes, name: str, *, all_frames: bool) -> Claim:
    width, height, frames, blocks = _u16(data, 6), _u16(data, 8), 0, 0
    flags = data[10] if len(data) > 10 else 0
    position = 13 + (3 << (flags & 7) + 1 if flags & 128 else 0)
    try:
        while blocks <= MAX_BLOCKS:
            kind = data[position]
            blocks += 1
            if kind == 0x3B:  # the end
                break
            if kind == 0x21:  # an extension: its label, then blocks
                position += 2
            elif kind == 0x2C:
                left, top, columns, rows, flags = struct.unpack("<4HB", data[position + 1 : position + 10])
                width, height = max(width, left + columns), max(height, top + rows)
                frames += 1
                if not all_frames:
                    break
                position += 11 + (3 << (flags & 7) + 1 if flags & 128 else 0)
            else:  # filling
                position += 1
                continue
            while length := data[position]:
                position += length + 1
                blocks += 1
                if blocks > MAX_BLOCKS:
                    break
            position += 1
    except (IndexError, struct.error):
        pass  # cut short
    if blocks > MAX_BLOCKS:
        raise ImageError(f"{name}: a GIF of more than {MAX_BLOCKS} blocks")
    return Claim(size=(width, height), frames=max(1, frames))


def _walk_tiff(data: bytes, name: str, limits: Limits, *, all_pages: bool) -> Claim:
    """Read the pages and the largest of their sizes and tiles, from their directories."""
    order, big = "<" if data[:1] == b"I" else ">", data[2] == 43  # as Pillow decides it
    head, entry, pointer = ("Q", "HHQ", "Q") if big else ("H", "HHI", "I")
    head_bytes, entry_bytes, inline = struct.calcsize(order + head), 20 if big else 12, 8 if big else 4
    pages, entries, unknown, tile, fax_rows, largest = 0, 0, 0, 0, 0, (0, 0)
    seen: set[int] = set()
    try:
        (offset,) = struct.unpack_from(order + pointer, data, 8 if big else 4)
        while offset and offset not in seen and (all_pages or not seen):
            seen.add(offset)
            (count,) = struct.unpack_from(order + head, data, offset)
            entries += count
            if entries > MAX_ENTRIES:
                raise ImageError(f"{name}: a TIFF of more than {MAX_ENTRIES} directory entries")
            if len(seen) > limits.max_video_frames:
                raise ImageError(f"{name}: more than {limits.max_video_frames} frames (max_video_frames)")
            pages += 1
            values, fax = {}, False
            for index in range(count):
                place = offset + head_bytes + index * entry_bytes
                tag, kind, number = struct.unpack_from(order + entry[:2] + entry[2], data, place)
                width = _TIFF_TYPE_BYTES.get(kind, 8)
                unknown += not (1 <= kind <= 13 or (big and 16 <= kind <= 18))
                if tag in (256, 257, 259, 322, 323) and number == 1 and width <= inline:
                    start = place + entry_bytes - inline
                    values[tag] = int.from_bytes(data[start : start + width], "little" if order == "<" else "big")
                # Of a tag that comes twice libtiff takes the first, Pillow the last; it may have several values, too.
                fax |= tag == 259 and (number != 1 or values.get(259) in _TIFF_FAX)
            fax_rows += values.get(257, 0) if fax else 0
            largest = max(largest, (values.get(256, 0), values.get(257, 0)), key=math.prod)
            tile = max(tile, values.get(322, 0) * values.get(323, 0))
            (offset,) = struct.unpack_from(order + pointer, data, offset + head_bytes + count * entry_bytes)
    except (struct.error, OverflowError):
        pass  # cut short, or an offset beyond any file
    if unknown > MAX_UNKNOWN_TYPES:
        raise ImageError(f"{name}: a TIFF of more than {MAX_UNKNOWN_TYPES} directory entries of unknown types")
    if fax_rows > MAX_FAX_ROWS:
        raise ImageError(f"{name}: a fax-coded TIFF of {fax_rows} rows; at most {MAX_FAX_ROWS} are decoded")
    if tile > limits.max_pixels:
        raise ImageError(f"{name}: tiles of {tile} pixels; at most {limits.max_pixels} are allowed (max_pixels)")
    return Claim(size=largest if largest != (0, 0) else None, frames=max(1, pages))


def _webp_size(data: bytes) -> tuple[int, int] | None:
    """Read the size of the canvas, for which the decoder takes memory as soon as it opens the file."""
    chunk = data[12:16]
    if chunk == b"VP8 " and data[23:26] == b"\x9d\x01\x2a" and len(data) >= 30:
        return _u16(data, 26) & 0x3FFF, _u16(data, 28) & 0x3FFF
    if chunk == b"VP8X" and len(data) >= 30:
        return int.from_bytes(data[24:27], "little") + 1, int.from_bytes(data[27:30], "little") + 1
    if chunk == b"VP8L" and len(data) >= 25:
        bits = int.from_bytes(data[21:25], "little")
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    return None


def _check_bmp(data: bytes, name: str) -> None:
    if len(data) < 34 or data[14] < 40:  # the old header: no run lengths
        return
    width, height = (abs(value) for value in struct.unpack("<ii", data[18:26]))
    if int.from_bytes(data[30:34], "little") in (1, 2) and width * height > MAX_RUN_LENGTH_PIXELS:
        raise ImageError(
            f"{name}: {width} x {height} pixels; at most {MAX_RUN_LENGTH_PIXELS} of a run-length encoded BMP are read"
        )
