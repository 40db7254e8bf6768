"""Zarr folders, version 2 and 3.

The folder is walked here: only regular files and folders that lie inside it count, a link that
leaves it is refused.  The zarr package is given the metadata of one array at a time and says its
shape, type and fill value; chunks are read one by one, each within the size that the metadata
declare (jaxvol/data/io/zarr_codecs.py).  A chunk that is not there reads as the fill value: writers
leave out chunks of it, and so does a copy that broke off, so they are counted.
"""

from __future__ import annotations

import json
import math
import os
import re
from typing import Any, NamedTuple

import numpy as np

from jaxvol.data.io import chunks, zarr_codecs
from jaxvol.data.io.opened import Chunks, Opened, array_bytes
from jaxvol.runtime.regular_files import FileError, open_regular

MAX_FOLDERS = 100_000  # that are looked into for arrays
MAX_LISTED = 1 << 24  # chunks or folders of chunks
MAX_DOCUMENT = 1 << 26  # bytes of the metadata of one group or array
MAX_FILTERED_PADDING = 1 << 22  # bytes of a chunk whose filters work in wider numbers
NUMBER = re.compile(r"0|[1-9]\d{0,18}", re.ASCII)
DOCUMENTS = {2: (".zarray", ".zgroup"), 3: ("zarr.json",)}


class Node(NamedTuple):
    """One array of a store."""

    folder: str
    array: Any  # zarr.Array of the metadata alone
    attributes: dict[str, Any]
    grid: tuple[int, ...]
    chunk: tuple[int, ...]
    prefix: str  # what the names of its chunks begin with
    separator: str
    text: str  # the metadata without attributes


def open_zarr(path: str) -> Opened:
    root = os.path.realpath(path)
    version = 3 if os.path.lexists(os.path.join(root, "zarr.json")) else 2
    nodes, attributes = _walk(root, version)
    stored: dict[str, np.ndarray] = {}
    codecs: dict[str, zarr_codecs.Codecs] = {}

    def present(key: str) -> np.ndarray:
        if key not in stored:
            stored[key] = _stored_chunks(nodes[key], root)
        return stored[key]

    def fault(key: str) -> str:
        return _fault(nodes[key])

    def stored_chunks(key: str) -> Chunks:
        total, dtype = math.prod(nodes[key].grid), np.dtype(nodes[key].array.dtype)
        return Chunks(total - len(present(key)), total, array_bytes(nodes[key].chunk, dtype))

    def read(key: str, index: Any) -> np.ndarray:
        if key not in codecs:
            codecs[key] = _codecs(nodes[key])
        return _read(nodes[key], codecs[key], index, present(key), root)

    def metadata(key: str) -> dict[str, Any]:
        return {
            "attributes": nodes[key].attributes,
            "file_attributes": attributes if key else {},
        }

    return Opened(
        arrays={
            key: (tuple(node.array.shape), np.dtype(node.array.dtype))
            for key, node in nodes.items()
        },
        fault=fault,
        chunks=stored_chunks,
        read=read,
        metadata=metadata,
        close=lambda: None,
        partial=True,
        keyed="" not in nodes,
    )


def _walk(root: str, version: int) -> tuple[dict[str, Node], dict[str, Any]]:
    """(every array under the root, attributes of the root); each folder is looked into once."""
    nodes: dict[str, Node] = {}
    attributes: dict[str, Any] = {}
    waiting, visited = [""], set()
    while waiting:
        key = waiting.pop()
        folder = _inside(os.path.join(root, key) if key else root, root)
        if folder in visited:
            continue
        visited.add(folder)
        if len(visited) > MAX_FOLDERS:
            raise ValueError(f"more than {MAX_FOLDERS} folders")
        name, document = _document(folder, root, version)
        if document is None and not key:
            raise ValueError(f"no {' or '.join(DOCUMENTS[version])} in it")
        if document is None:
            continue
        if version == 3:
            described = document.pop("attributes", None) or {}
        else:
            described = _json(os.path.join(folder, ".zattrs"), root) or {}
        attributes = attributes if key else described
        if name == ".zarray" or document.get("node_type") == "array":
            nodes[key] = _node(folder, version, document, described)
            continue
        with os.scandir(folder) as entries:
            names = sorted(entry.name for entry in entries if entry.is_dir())
        waiting += [f"{key}/{name}" if key else name for name in reversed(names)]
    return dict(sorted(nodes.items())), attributes


def _inside(path: str, root: str) -> str:
    """Where the path really lies; FileError when a link leads out of the store."""
    real = os.path.realpath(path)
    if real != root and not real.startswith(root + os.sep):
        raise FileError(f"{path}: a link to {real}, outside of {root}; expected files inside it")
    return real


def _json(path: str, root: str) -> Any:
    """A document of the store, None where there is none; ValueError where it is damaged."""
    if not os.path.lexists(path):
        return None
    with open_regular(_inside(path, root)) as file:
        text = file.read(MAX_DOCUMENT + 1)
    if len(text) > MAX_DOCUMENT:
        raise ValueError(f"{os.path.basename(path)} has more than {MAX_DOCUMENT} bytes")
    document = json.loads(text)
    if not isinstance(document, dict):
        raise ValueError(f"{os.path.basename(path)} holds no JSON object")
    return document


def _document(folder: str, root: str, version: int) -> tuple[str, Any]:
    for name in DOCUMENTS[version]:
        if (document := _json(os.path.join(folder, name), root)) is not None:
            return name, document
    return "", None


def _node(folder: str, version: int, document: dict[str, Any], attributes: dict[str, Any]) -> Node:
    """What zarr makes of the metadata, which is all that it is shown."""
    import zarr

    text = json.dumps(document)
    name = DOCUMENTS[version][0]
    buffer = zarr.core.buffer.default_buffer_prototype().buffer.from_bytes(text.encode())
    store = zarr.storage.MemoryStore({name: buffer}, read_only=True)
    array = zarr.open_array(store, mode="r", zarr_format=version)
    chunk = tuple(int(n) for n in array.shards or array.chunks)
    if version == 2:
        prefix, separator = "", document.get("dimension_separator") or "."
    else:
        encoding = document["chunk_key_encoding"]
        default = encoding["name"] == "default"
        settings = encoding.get("configuration") or {}
        separator = settings.get("separator") or ("/" if default else ".")
        prefix = "c" + separator if default else ""
    if separator not in ("/", "."):
        raise ValueError(f"chunks named with {str(separator)[:20]!r}; expected / or .")
    grid = chunks.grid(array.shape, chunk) if min(chunk, default=1) > 0 else ()
    return Node(folder, array, attributes, grid, chunk, prefix, separator, text)


def _fault(node: Node) -> str:
    """Why the array must not be read; "" where it may."""
    dtype = np.dtype(node.array.dtype)
    # refused here whatever this version of zarr would do with such a codec
    if "pickle" in node.text.lower() or dtype.hasobject:
        return "its chunks would have to be unpickled; expected numbers"
    if dtype.kind not in "biuf" or 0 in node.array.shape:
        return ""
    if fault := chunks.size_fault(node.array.shape, node.chunk, dtype.itemsize):
        return fault
    try:
        codecs = _codecs(node)
    except Exception as error:
        return (
            f"its chunks went through what is not read here: {' '.join(str(error).split())[:200]}"
        )
    array, chunk = (math.prod(s) * dtype.itemsize for s in (node.array.shape, node.chunk))
    wider = any(codec in zarr_codecs.RETYPED for codec in zarr_codecs.names(codecs))
    if wider and chunk > max(4 * array, MAX_FILTERED_PADDING):
        return f"declares chunks {node.chunk} ({chunk} bytes) for shape {node.array.shape}"
    return ""


def _codecs(node: Node) -> zarr_codecs.Codecs:
    dtype = np.dtype(node.array.dtype)
    if node.array.metadata.zarr_format == 2:
        return zarr_codecs.version_2(json.loads(node.text), node.chunk, dtype)
    # as zarr has completed them: a codec may leave out what follows from the array
    documents = [codec.to_dict() for codec in node.array.metadata.codecs]
    return zarr_codecs.version_3(documents, node.chunk, dtype)


def _stored_chunks(node: Node, root: str) -> np.ndarray:
    """Flat numbers of the chunks for which there is a file, in order."""
    axes, separator = len(node.grid), node.separator
    if not axes:
        name = node.prefix.rstrip("./") or "0"
        return np.arange(int(os.path.lexists(os.path.join(node.folder, name))))
    numbers: list[int] = []
    waiting, listed = [(node.folder, node.prefix, ())], 0
    while waiting:
        folder, prefix, before = waiting.pop()
        if prefix == "c/":
            folder, prefix = os.path.join(folder, "c"), ""
        listed += 1
        if max(listed, len(numbers)) > MAX_LISTED:
            raise ValueError(f"more than {MAX_LISTED} chunks or folders of chunks")
        if not os.path.isdir(folder):
            continue
        _inside(folder, root)
        with os.scandir(folder) as entries:
            for entry in entries:
                if not entry.name.startswith(prefix):
                    continue
                words = entry.name[len(prefix) :].split(".") if separator == "." else [entry.name]
                if not all(NUMBER.fullmatch(word) for word in words):
                    continue
                place = (*before, *map(int, words))
                if any(n >= size for n, size in zip(place, node.grid)):
                    continue
                if len(place) == axes:
                    numbers.append(_flat(place, node.grid))
                elif len(place) < axes and separator == "/":
                    waiting.append((entry.path, "", place))
    return np.sort(np.array(numbers, np.int64))


def _flat(place: tuple[int, ...], grid: tuple[int, ...]) -> int:
    number = 0
    for n, size in zip(place, grid):
        number = number * size + n
    return number


def _read(
    node: Node, codecs: zarr_codecs.Codecs, index: Any, stored: np.ndarray, root: str
) -> np.ndarray:
    """The piece `index`, from the chunks that it touches, one after the other."""
    fill = 0 if node.array.fill_value is None else node.array.fill_value
    dtype = np.dtype(node.array.dtype)
    piece = chunks.spans(tuple(index), node.array.shape, node.chunk)
    values = np.full([span.count for span in piece], fill, dtype)
    for place in chunks.places(piece, stored, node.grid):
        name = node.prefix + node.separator.join(map(str, place)) if place else ""
        name = name or node.prefix.rstrip("./") or "0"
        path = os.path.join(node.folder, name)
        try:
            file = open_regular(_inside(path, root))
        except FileNotFoundError:
            continue
        parts = [span.part(number) for span, number in zip(piece, place)]
        inside, outside = (tuple(part[i] for part in parts) for i in (0, 1))
        with file:
            length = os.fstat(file.fileno()).st_size
            values[outside] = zarr_codecs.values(codecs, file, 0, length, fill, inside)
    return values.reshape([span.count for span in piece if not span.drop])


def write_zarr(path: str, key: str, array: np.ndarray, meta: dict[str, Any], like: str) -> None:
    import zarr

    # chunks of fill values are written too: a missing chunk would read as zeros
    with zarr.config.set({"array.write_empty_chunks": True}):
        root = zarr.open_group(path, mode="w")
        root.attrs.update(meta["file_attributes"])
        node = root.create_array(key or "data", shape=array.shape, dtype=array.dtype)
        node[...] = array
        node.attrs.update(meta["attributes"])
