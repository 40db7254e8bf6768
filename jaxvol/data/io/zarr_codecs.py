"""What the chunks of a Zarr array went through, undone step by step within the declared size.

Known: of version 2 the compressor and filters, of version 3 the codecs, bytes to bytes: gzip, zlib,
bz2, lzma, zstd, blosc, lz4, checksums, shuffle; on values: transpose, delta, fixedscaleoffset,
quantize, bitround, astype, packbits; and shards.  Any other codec is refused, because nothing
bounds what it makes.  Before a step is undone it is known how many bytes it may make, from the
declared size of the chunk inwards, however the codecs are nested.
"""

from __future__ import annotations

import io
import itertools
import math
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from jaxvol.data.io import chunks
from jaxvol.data.io.unpack import unpack

PACKERS = ("gzip", "zlib", "bz2", "lzma", "zstd", "blosc", "lz4")
CHECKSUMS = ("crc32", "crc32c", "adler32", "fletcher32", "jenkins_lookup3")
# filters whose values have another type in the file, and the setting that says which
RETYPED = {"delta": "astype", "fixedscaleoffset": "astype", "quantize": "astype"}
RETYPED |= {"astype": "encode_dtype"}
SAME_SIZE = ("shuffle", "bitround")
MAX_NESTED = 4  # shards in shards
MISSING = 2**64 - 1  # place and size of a chunk that a shard leaves out


class Step(NamedTuple):
    """One codec: what it holds once undone takes `size` bytes, or at most as many."""

    codec: str
    settings: dict[str, Any]
    size: int
    exact: bool


class Shard(NamedTuple):
    """A chunk that is a file of smaller chunks, with an index of their places."""

    codecs: Codecs
    grid: tuple[int, ...]  # of the smaller chunks
    index_bytes: int
    index_dtype: np.dtype
    index_checked: bool  # a crc32c follows the index
    index_first: bool


class Codecs(NamedTuple):
    """How the bytes of one chunk become its values."""

    chunk: tuple[int, ...]
    dtype: np.dtype  # of the values
    packers: tuple[Step, ...]  # bytes to bytes, as they were applied
    limit: int  # bytes of a whole chunk as it is stored, at most
    stored: np.dtype  # type of the values behind the packers
    order: str  # C or F
    filters: tuple[tuple[str, dict, tuple[int, ...]], ...]  # on values: codec, settings, shape
    shard: Shard | None


def version_2(document: dict[str, Any], chunk: tuple[int, ...], dtype: np.dtype) -> Codecs:
    """The codecs of a `.zarray`; ValueError where one is not known."""
    codecs = [*(document.get("filters") or ()), document.get("compressor")]
    size, exact, steps = math.prod(chunk) * dtype.itemsize, True, []
    for settings in codecs:
        if settings is not None:
            settings = dict(settings)
            step = Step(settings.pop("id"), settings, size, exact)
            steps.append(step)
            size, exact = _encoded(step)
    order = document["order"] if document["order"] in ("C", "F") else "C"
    return Codecs(chunk, dtype, tuple(steps), size, dtype, order, (), None)


def version_3(
    codecs: list[dict], chunk: tuple[int, ...], dtype: np.dtype, depth: int = 0
) -> Codecs:
    """The codecs of a `zarr.json`; ValueError where one is not known."""
    names = [codec["name"].removeprefix("numcodecs.") for codec in codecs]
    every = [codec.get("configuration") or {} for codec in codecs]
    turns = [i for i, name in enumerate(names) if name in ("bytes", "sharding_indexed")]
    if len(turns) != 1:
        raise ValueError(f"codecs {str(names)[:80]}; expected one of them to be bytes or shards")
    turn = turns[0]
    shape, stored, filters = chunk, dtype, []
    for name, settings in zip(names[:turn], every[:turn]):
        filters.append((name, settings, shape))
        if name == "transpose":
            shape = tuple(shape[axis] for axis in _order(settings, len(shape)))
        elif name in RETYPED:
            stored = _number(settings.get(RETYPED[name]) or stored)
        elif name == "packbits":
            shape, stored = (-(-math.prod(shape) // 8) + 1,), np.dtype("u1")
        elif name != "bitround":
            raise ValueError(f"the codec {name[:40]!r} of values is not known")
    size, shard, exact = math.prod(shape) * stored.itemsize, None, True
    if names[turn] == "bytes":
        big = every[turn].get("endian") == "big"
        stored = stored.newbyteorder(">" if big else "<")
    else:
        shard = _shard(every[turn], shape, stored, depth)
        size, exact = math.prod(shard.grid) * shard.codecs.limit + shard.index_bytes, False
    steps = []
    for name, settings in zip(names[turn + 1 :], every[turn + 1 :]):
        step = Step(name, settings, size, exact)
        steps.append(step)
        size, exact = _encoded(step)
    return Codecs(chunk, dtype, tuple(steps), size, stored, "C", tuple(filters), shard)


def _shard(settings: dict[str, Any], shape: tuple[int, ...], dtype: np.dtype, depth: int) -> Shard:
    if depth >= MAX_NESTED:
        raise ValueError(f"shards nested more than {MAX_NESTED} deep")
    chunk = tuple(int(n) for n in settings["chunk_shape"])
    if len(chunk) != len(shape) or any(c < 1 or n % c for n, c in zip(shape, chunk)):
        raise ValueError(f"shards of {shape} do not divide into chunks of {chunk}")
    index = settings.get("index_codecs") or [{"name": "bytes"}, {"name": "crc32c"}]
    names = [codec["name"] for codec in index]
    if names not in (["bytes"], ["bytes", "crc32c"]):
        raise ValueError(
            f"the index of its shards went through {names[:4]}; expected bytes, crc32c"
        )
    big = (index[0].get("configuration") or {}).get("endian") == "big"
    grid = tuple(n // c for n, c in zip(shape, chunk))
    return Shard(
        version_3(settings["codecs"], chunk, dtype, depth + 1),
        grid,
        16 * math.prod(grid) + 4 * (len(names) - 1),
        np.dtype(">u8" if big else "<u8"),
        len(names) > 1,
        settings.get("index_location") == "start",
    )


def _encoded(step: Step) -> tuple[int, bool]:
    """(bytes of a step as it is stored, whether just as many); ValueError for an unknown codec."""
    if step.codec in SAME_SIZE:
        return step.size, step.exact
    if step.codec in CHECKSUMS:
        return step.size + 4, step.exact
    if step.codec in PACKERS:
        return step.size + step.size // 8 + 4096, False
    if step.codec == "base64":
        return 4 * -(-step.size // 3), step.exact
    if step.codec == "packbits":
        return -(-step.size // 8) + 1, step.exact
    if step.codec in RETYPED:
        values = "decode_dtype" if step.codec == "astype" else "dtype"
        inside = _number(step.settings[values])
        outside = _number(step.settings.get(RETYPED[step.codec]) or inside)
        return step.size // inside.itemsize * outside.itemsize, step.exact
    raise ValueError(f"the codec {str(step.codec)[:40]!r} is not known")


def _number(name: Any) -> np.dtype:
    dtype = np.dtype(name)
    if dtype.kind not in "biufcmM":
        raise ValueError(f"a filter of values of type {str(dtype)[:40]}")
    return dtype


def _order(settings: dict[str, Any], axes: int) -> tuple[int, ...]:
    order = settings["order"]
    if order in ("C", "F"):
        return tuple(range(axes))[:: 1 if order == "C" else -1]
    if sorted(order) != list(range(axes)):
        raise ValueError(f"a transpose of {axes} axes to {str(order)[:40]}")
    return tuple(order)


def undo(packers: tuple[Step, ...], packed: bytes) -> Any:
    """The bytes that the packers were given, each step within its size."""
    import numcodecs

    for step in reversed(packers):
        if step.codec in PACKERS:
            settings = step.settings if step.codec == "lzma" else None
            packed = unpack(step.codec, packed, step.size, step.exact, settings)
            continue
        size, exact = _encoded(step)
        if len(packed) > size or (exact and len(packed) != size):
            raise ValueError(f"a {step.codec} block of {len(packed)} bytes; {size} are declared")
        values = numcodecs.get_codec({**step.settings, "id": step.codec}).decode(bytes(packed))
        packed = memoryview(np.ascontiguousarray(values).reshape(-1).view(np.uint8))
    return packed


def unfilter(codecs: Codecs, array: np.ndarray) -> np.ndarray:
    """The values of a whole chunk before its filters, in the chunk's shape."""
    import numcodecs

    for name, settings, shape in reversed(codecs.filters):
        if name == "transpose":
            order = _order(settings, len(shape))
            array = array.reshape([shape[axis] for axis in order]).transpose(np.argsort(order))
        else:
            array = numcodecs.get_codec({**settings, "id": name}).decode(array.ravel())
            array = np.asarray(array).reshape(shape)
    return array.reshape(codecs.chunk, order=codecs.order)


def values(
    codecs: Codecs, source: BinaryIO, start: int, length: int, fill: Any, piece: tuple[slice, ...]
) -> np.ndarray:
    """The piece of one chunk, which lies at `start` in a file; `fill` stands where a shard has no
    chunk.

    Raises ValueError where the chunk is longer than it can be, or unfolds to another size.
    """
    if codecs.shard is None or codecs.packers:
        if length > codecs.limit:
            raise ValueError(f"a chunk of {length} bytes; at most {codecs.limit} are declared")
        source.seek(start)
        packed = undo(codecs.packers, source.read(length))
        if codecs.shard is None:
            return unfilter(codecs, np.frombuffer(packed, codecs.stored))[piece]
        source, start, length = io.BytesIO(packed), 0, len(packed)
    if not codecs.filters:
        return _shard_values(codecs.shard, codecs.chunk, source, start, length, fill, piece)
    shape = codecs.filters[-1][2]
    if codecs.filters[-1][0] == "transpose":
        shape = tuple(shape[axis] for axis in _order(codecs.filters[-1][1], len(shape)))
    array = _shard_values(
        codecs.shard, shape, source, start, length, fill, (slice(None),) * len(shape)
    )
    return unfilter(codecs, array)[piece]


def _shard_values(
    shard: Shard,
    shape: tuple[int, ...],
    source: BinaryIO,
    start: int,
    length: int,
    fill: Any,
    piece: tuple[slice, ...],
) -> np.ndarray:
    import numcodecs

    source.seek(start if shard.index_first else start + max(0, length - shard.index_bytes))
    index = source.read(shard.index_bytes)
    if len(index) < shard.index_bytes or length < shard.index_bytes:
        raise ValueError(f"a shard of {length} bytes; its index alone takes {shard.index_bytes}")
    if shard.index_checked:
        index = numcodecs.get_codec({"id": "crc32c", "location": "end"}).decode(index)
    entries = np.frombuffer(index, shard.index_dtype).reshape(*shard.grid, 2)
    across = chunks.spans(piece, shape, shard.codecs.chunk)
    array = np.full([span.count for span in across], fill, shard.codecs.dtype)
    for number in itertools.product(*(span.chunks() for span in across)):
        place, size = (int(n) for n in entries[number])
        if place == size == MISSING:
            continue
        if place + size > length:
            raise ValueError(f"the chunk {number} of a shard lies behind its {length} bytes")
        inside, outside = zip(*(span.part(n) for span, n in zip(across, number)), strict=True)
        array[outside] = values(shard.codecs, source, start + place, size, fill, inside)
    return array


def names(codecs: Codecs) -> list[str]:
    """The codecs of a chunk, with those inside its shards."""
    inner = names(codecs.shard.codecs) if codecs.shard else []
    return [
        *(step.codec for step in codecs.packers),
        *(name for name, *_ in codecs.filters),
        *inner,
    ]
