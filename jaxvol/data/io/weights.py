"""Files of network weights (.safetensors .npz .pt .pth .ckpt .bin), read without executing anything
found in them.

What a file may claim: .npz what numpy_files.py allows; .safetensors what its package checks,
tensors that lie side by side within the file; the others what torch_archive.py allows, storages
that lie side by side and tensors that are views of them.  Half-precision numbers become float32, so
reading takes at most three times the file.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import safetensors

from jaxvol.data.io.numpy_files import open_npz
from jaxvol.data.io.torch_archive import read_torch
from jaxvol.data.io.torch_tensors import single
from jaxvol.runtime.regular_files import FileError, open_regular
from jaxvol.types import UserError

EXTENSIONS = (".safetensors", ".npz", ".pt", ".pth", ".ckpt", ".bin")
PREFIXES = ("module.", "_orig_mod.")  # what torch's wrappers put before every name
MAX_WRAPPERS = 8
MAX_LISTED = 20  # state dicts, or keys, that a message names
SAFETENSORS = {
    "F64": "f8",
    "F32": "f4",
    "F16": "f2",
    "BF16": ml_dtypes.bfloat16,
    "I64": "i8",
    "I32": "i4",
    "I16": "i2",
    "I8": "i1",
    "U64": "u8",
    "U32": "u4",
    "U16": "u2",
    "U8": "u1",
    "BOOL": "?",
    "C64": "c8",
}
Tensors = dict[str, np.ndarray]


def read(path: str | Path, key: str = "") -> Tensors:
    """name -> array of the state dict in a file; half-precision numbers become float32.

    key: where the state dict lies in a checkpoint ("model.ema"), or what its names begin with
         ("generator"); "" = the only one. An .npz with names `param/...` holds those.
    Raises UserError: unknown extension, damaged file, a pickle that calls something unknown, no or
    several state dicts.
    """
    path = Path(path)
    readers = {".safetensors": _read_safetensors, ".npz": _read_npz}
    suffix = path.suffix.lower()
    if suffix not in EXTENSIONS:
        raise UserError(
            f"{path}: no reader for the extension {path.suffix!r}; expected one of "
            f"{' '.join(EXTENSIONS)}"
        )
    if not path.exists():
        raise UserError(f"{path}: there is no such file")
    try:
        tree = readers[suffix](path) if suffix in readers else read_torch(path)
        return {name: single(x) for name, x in _strip(find(tree, key)).items()}
    except FileError:
        raise
    except UserError as error:
        raise UserError(f"{path}: {_printable(error)[:2000]}") from error
    # libraries raise anything on corrupt bytes, from zlib.error to TokenError
    except Exception as error:
        raise UserError(
            f"{path}: it cannot be read as {path.suffix} ({type(error).__name__}: "
            f"{_printable(error)[:200]}); the file is damaged, or is not what its name says"
        ) from error


def _printable(error: Exception) -> str:
    """The message of an error, which may quote the file."""
    return "".join(c if c.isprintable() else "?" for c in " ".join(str(error).split()))


def find(tree: Any, key: str = "") -> Tensors:
    """The state dict in nested dicts: the one under `key` (dotted), or the only dict of arrays that
    has no such dict inside.

    Entries that are no arrays are left out; so are dicts below a list or a key that is no string
    (states of optimizers). Raises UserError, with the keys there are, when there is none or more
    than one.
    """
    whole = tree
    if key:
        tree = _descend(tree, key)
    dicts: list[tuple[tuple[str, ...], Tensors]] = []
    visited: dict[int, bool] = {}

    def search(node: Any, path: tuple[str, ...]) -> bool:
        """Whether there is a state dict in this node; each is visited once, because a dict may hold
        itself.
        """
        if (
            id(node) in visited
            or not isinstance(node, dict)
            or not all(isinstance(k, str) for k in node)
            or len(path) > 8
        ):
            return id(node) in visited and visited[id(node)]
        visited[id(node)] = False
        inside = [search(value, (*path, k)) for k, value in node.items()]
        arrays = {k: v for k, v in node.items() if isinstance(v, np.ndarray)}
        if arrays and not any(inside):
            dicts.append((path, arrays))
        visited[id(node)] = any(inside) or bool(arrays)
        return visited[id(node)]

    search(tree, (key,) if key else ())
    if len(dicts) == 1:
        return dicts[0][1]
    if dicts:
        raise UserError(
            f"found {len(dicts)} state dicts: {_listed(dicts)}; choose one with --key=NAME"
        )
    keys = type(whole).__name__
    if isinstance(whole, dict):
        keys = ", ".join(str(k)[:80] for k in list(whole)[:MAX_LISTED])
    raise UserError(
        "found no state dict (a dict of name -> "
        f"tensor){f' under the key {key!r}' if key else ''}; it has: {keys}. "
        "Save model.state_dict(), not the model, the optimizer or a list of tensors"
    )


def _listed(dicts: list[tuple[tuple[str, ...], Tensors]]) -> str:
    lines = [
        f"{'.'.join(k[:80] for k in path) or '(the whole file)'} ({len(arrays)} tensors)"
        for path, arrays in dicts[:MAX_LISTED]
    ]
    return ", ".join(lines) + (", ..." if len(dicts) > MAX_LISTED else "")


def _descend(tree: Any, key: str) -> Any:
    """The value under a dotted key, whose parts may hold dots themselves; else the arrays whose
    names begin with it.
    """
    if not isinstance(tree, dict):
        return None
    if key in tree:
        return tree[key]
    for name in sorted(
        (n for n in tree if isinstance(n, str) and key.startswith(n + ".")), key=len, reverse=True
    ):
        value = _descend(tree[name], key[len(name) + 1 :])
        if value is not None:
            return value
    below = re.compile(re.escape(key) + r"[./]")
    inside = {
        n[len(key) + 1 :]: v for n, v in tree.items() if isinstance(n, str) and below.match(n)
    }
    return inside or None


def _strip(tensors: Tensors) -> Tensors:
    """Names without what wrappers, at most MAX_WRAPPERS, put before all of them."""
    for _ in range(MAX_WRAPPERS):
        for prefix in PREFIXES:
            if tensors and all(name.startswith(prefix) for name in tensors):
                tensors = {name[len(prefix) :]: x for name, x in tensors.items()}
                break
        else:
            return tensors
    return tensors


def _read_npz(path: Path) -> Tensors:
    # whose headers are checked before anything is allocated
    file = open_npz(str(path))
    chosen = [name for name in file.arrays if name.startswith("param/")] or list(file.arrays)
    if wrong := [f"{name} {file.fault(name)}" for name in chosen if file.fault(name)]:
        raise UserError(f"its array {wrong[0]}; the file is damaged")
    tensors = {name.removeprefix("param/"): file.read(name, ()) for name in chosen}
    file.close()
    return tensors


def _read_safetensors(path: Path) -> Tensors:
    """The package checks header, offsets and sizes; only the types are ours, because NumPy has no
    bfloat16 of its own.
    """
    tensors = {}
    with open_regular(path) as file:
        data = file.read()
    for name, entry in safetensors.deserialize(data):
        if entry["dtype"] not in SAFETENSORS:
            raise UserError(
                f"tensor {name} has the type {entry['dtype']}; expected one of "
                f"{', '.join(SAFETENSORS)}"
            )
        dtype = np.dtype(SAFETENSORS[entry["dtype"]])
        tensors[name] = np.frombuffer(entry["data"], dtype).reshape(entry["shape"])
    return tensors
