"""What is packed is unpacked here, and never to more than its header declares.

Every container goes through these two functions: `Unpacked` is a stream that gives at most as many
bytes as it is asked for, `unpack` undoes a block in memory whose size has been declared.  gzip,
zlib, bz2 and lzma are undone piece by piece; the blocks of zstd, blosc and lz4 state their own
size, which has to be the declared one or less before any memory is taken.
"""

from __future__ import annotations

import bz2
import io
import lzma
import struct
import zlib
from collections.abc import Callable
from typing import Any, BinaryIO

PACKED_PIECE = 1 << 14  # bytes taken at once from a packed stream
PIECE = 1 << 20  # bytes unpacked at once
DEFLATE_RATIO = 1032  # a byte of deflate (zlib, gzip, zip) never makes more than this
LZMA_MEMORY = 1 << 27  # bytes that a dictionary may take; the highest preset needs 65 MiB
ZSTD_BLOCK = 1 << 17  # a block of zstd never makes more than this
ZSTD_MAGIC, ZSTD_SKIPPED = 0xFD2FB528, 0x184D2A5


class Unpacked:
    """What a packed stream holds: `read(n)` gives at most n bytes, b"" at its end.

    codec: "gzip", "zlib", "bz2" or "lzma"; `settings` are those of lzma (format, filters).
    Streams that follow one another count as one, as their own programs read them; what follows
    the only stream of zlib, or is no stream of bz2 and lzma, is left unread.
    """

    def __init__(self, codec: str, source: BinaryIO, settings: dict[str, Any] | None = None):
        self.codec, self.source = codec, source
        self.start = _starter(codec, settings or {})
        self.decoder, self.waiting, self.streams = self.start(), b"", 1

    def read(self, size: int) -> bytes:
        """At most `size` bytes; EOFError where the stream is cut, the library's own error where it
        is damaged.
        """
        while size > 0:
            if self.decoder.eof:
                if not self._next_stream():
                    return b""
                continue
            packed = self.waiting or self._more()
            try:
                values = self.decoder.decompress(packed, size)
            except (OSError, lzma.LZMAError):
                if self.streams > 1:
                    return b""
                raise
            self.waiting = b""
            if isinstance(self.decoder, (bz2.BZ2Decompressor, lzma.LZMADecompressor)):
                if self.decoder.eof:
                    self.waiting = self.decoder.unused_data
            else:
                self.waiting = self.decoder.unconsumed_tail or self.decoder.unused_data
            if values:
                return values
            if not packed and not self.decoder.eof:
                raise EOFError(f"the {self.codec} stream ends before its end mark")
        return b""

    def _more(self) -> bytes:
        """The next packed bytes; none while the decoder still holds some back."""
        if getattr(self.decoder, "needs_input", True):
            return self.source.read(PACKED_PIECE)
        return b""

    def _next_stream(self) -> bool:
        if self.codec == "zlib":
            return False
        packed = self.waiting
        while not packed.strip(b"\0" if self.codec == "gzip" else b""):
            packed = self.source.read(PACKED_PIECE)
            if not packed:
                return False
        self.waiting = packed.lstrip(b"\0") if self.codec == "gzip" else packed
        self.decoder, self.streams = self.start(), self.streams + 1
        return True


def _starter(codec: str, settings: dict[str, Any]) -> Callable[[], Any]:
    if codec in ("gzip", "zlib"):
        bits = 31 if codec == "gzip" else 15
        return lambda: zlib.decompressobj(bits)
    if codec == "bz2":
        return bz2.BZ2Decompressor
    if codec != "lzma":
        raise ValueError(f"no stream of {codec} is read")
    layout, filters = settings.get("format", lzma.FORMAT_XZ), settings.get("filters")
    if layout == lzma.FORMAT_RAW:
        if any(f.get("dict_size", 0) > LZMA_MEMORY for f in filters or ()):
            raise ValueError(f"an lzma dictionary of more than {LZMA_MEMORY} bytes")
        return lambda: lzma.LZMADecompressor(layout, filters=filters)
    return lambda: lzma.LZMADecompressor(layout, memlimit=LZMA_MEMORY)


def unpack(
    codec: str, packed: bytes, limit: int, exact: bool = False, settings: dict | None = None
) -> bytes | bytearray:
    """`packed` undone, which is at most `limit` bytes (with `exact`: just as many).

    codec: those of `Unpacked`, or "zstd", "blosc", "lz4" as numcodecs writes them.  Raises
    ValueError when it would be more, before the memory for it is taken.
    """
    packed = memoryview(packed)
    if codec in ("zstd", "blosc", "lz4"):
        values = _unpack_sized(codec, packed, limit, exact)
    else:
        values = bytearray()
        stream = Unpacked(codec, io.BytesIO(packed), settings)
        while piece := stream.read(min(PIECE, limit + 1 - len(values))):
            values += piece
            check_size(codec, len(values), limit)
    if exact and len(values) != limit:
        raise ValueError(f"its {codec} block holds {len(values)} bytes; {limit} are declared")
    return values


def check_size(codec: str, size: int, limit: int) -> None:
    """ValueError when a block of `codec` unfolds to more than it may."""
    if size > limit:
        raise ValueError(f"its {codec} block unfolds to more than the {limit} bytes declared")


def _unpack_sized(codec: str, packed: memoryview, limit: int, exact: bool) -> bytes:
    import numcodecs
    import numpy as np

    size, stated = block_size(codec, packed)
    # a zstd stream that states no size: the library unfolds it into the place that it is given
    if not stated and size > limit and exact:
        place = np.empty(limit, np.uint8)
        numcodecs.get_codec({"id": codec}).decode(packed, place)
        return place.data
    check_size(codec, size, limit + (0 if stated else ZSTD_BLOCK))
    if codec == "blosc":
        block, length = struct.unpack_from("<II", packed, 8)
        check_size(codec, block, limit + PIECE)
        # the library would read on behind the end
        if length > len(packed):
            raise EOFError(f"a blosc block of {length} bytes ends after {len(packed)}")
    values = numcodecs.get_codec({"id": codec}).decode(packed)
    check_size(codec, len(values), limit)
    return values


def block_size(codec: str, packed: memoryview) -> tuple[int, bool]:
    """(bytes that a block of zstd, blosc or lz4 makes at most, whether the block states them)."""
    if codec == "zstd":
        return _zstd_size(packed)
    place = {"blosc": 4, "lz4": 0}[codec]
    if len(packed) < (16 if codec == "blosc" else 4):
        raise ValueError(f"a {codec} block of {len(packed)} bytes has no header")
    return struct.unpack_from("<I", packed, place)[0], True


def _zstd_size(packed: memoryview) -> tuple[int, bool]:
    """Sum over the frames (RFC 8878): what each states, or else 128 KiB for each of its blocks."""
    total, place, stated = 0, 0, True
    while place < len(packed):
        (magic,) = struct.unpack_from("<I", packed, place)
        if magic >> 4 == ZSTD_SKIPPED:
            place += 8 + struct.unpack_from("<I", packed, place + 4)[0]
            continue
        if magic != ZSTD_MAGIC:
            raise ValueError("no zstd frame where one is expected")
        flags = packed[place + 4]
        single = flags >> 5 & 1
        width = (single, 2, 4, 8)[flags >> 6]
        place += 5 + (1 - single) + (0, 1, 2, 4)[flags & 3]
        size = int.from_bytes(packed[place : place + width], "little") + 256 * (width == 2)
        place, blocks, last = place + width, 0, False
        while not last:
            header = int.from_bytes(packed[place : place + 3], "little")
            if place + 3 > len(packed):
                raise ValueError("a zstd frame is cut")
            last, kind = bool(header & 1), header >> 1 & 3
            place += 3 + (1 if kind == 1 else header >> 3)
            blocks += 1
        place += 4 * (flags >> 2 & 1)
        total += size if width else blocks * ZSTD_BLOCK
        stated = stated and width > 0
    return total, stated
