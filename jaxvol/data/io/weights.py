"""Files of network weights (.safetensors .npz .pt .pth .ckpt .bin), read without executing anything
found in them.

A file of `torch.save` is a zip archive with a pickle, which is a program.  Here nothing runs it:
`pickletools` lists its instructions, `_interpret` follows those that build containers, and the few
functions that stand for tensors are carried out by `_call` below.  A pickle that calls anything
else is refused with the name of what it would have called.
"""

from __future__ import annotations

import math
import pickletools
import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
import safetensors

from jaxvol.data.io import containers
from jaxvol.types import UserError

EXTENSIONS = (".safetensors", ".npz", ".pt", ".pth", ".ckpt", ".bin")
PREFIXES = ("module.", "_orig_mod.")  # what torch's wrappers put before every name
STORAGES = {
    f"torch {kind}Storage": np.dtype(dtype)
    for kind, dtype in {
        "Float": "f4",
        "Double": "f8",
        "Half": "f2",
        "BFloat16": ml_dtypes.bfloat16,
        "Long": "i8",
        "Int": "i4",
        "Short": "i2",
        "Char": "i1",
        "Byte": "u1",
        "Bool": "?",
        "ComplexFloat": "c8",
        "ComplexDouble": "c16",
    }.items()
}
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
NO_TENSORS = (
    "numpy dtype",
    "numpy.core.multiarray scalar",
    "numpy._core.multiarray scalar",
    "_codecs encode",
    "torch device",
    # calls for a loss, an epoch, a device beside the state dict: left out
    "__builtin__ set",
    "builtins set",
)
Tensors = dict[str, np.ndarray]


class Global(NamedTuple):
    """A function or class that a pickle names; it stays a name."""

    name: str


class Storage(NamedTuple):
    """The numbers behind one or more tensors, [n]."""

    values: np.ndarray


class Ignored(NamedTuple):
    """A value that is no tensor and no container, such as a NumPy scalar."""


def read(path: str | Path, key: str = "") -> Tensors:
    """name -> array of the state dict in a file; half-precision numbers become float32.

    key: where the state dict lies in a checkpoint ("model.ema"), or what its names begin with
         ("generator"); "" = the only one. An .npz with names `param/...` holds those.
    Raises UserError: unknown extension, damaged file, a pickle that calls something unknown, no or
    several state dicts.
    """
    path = Path(path)
    readers = {".safetensors": _read_safetensors, ".npz": _read_npz}
    if path.suffix.lower() not in EXTENSIONS:
        raise UserError(
            f"{path}: no reader for the extension {path.suffix!r}; expected one of "
            f"{' '.join(EXTENSIONS)}"
        )
    if not path.is_file():
        raise UserError(f"{path}: there is no such file")
    try:
        tree = (
            readers[path.suffix.lower()](path)
            if path.suffix.lower() in readers
            else _read_torch(path)
        )
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    # libraries raise anything on corrupt bytes, from zlib.error to TokenError
    except Exception as error:
        # it may quote the file
        reason = "".join(c if c.isprintable() else "?" for c in " ".join(str(error).split()))[:200]
        raise UserError(
            f"{path}: it cannot be read as {path.suffix} ({type(error).__name__}: {reason}); the "
            "file is damaged, or "
            "is not what its name says"
        ) from error
    try:
        return {name: _single(x) for name, x in _strip(find(tree, key)).items()}
    except UserError as error:
        raise UserError(f"{path}: {error}") from error


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
    found: dict[str, Tensors] = {}
    seen: dict[int, bool] = {}

    def search(node: Any, path: tuple[str, ...]) -> bool:
        """Whether there is a state dict in this node; each is visited once, because a dict may hold
        itself.
        """
        if (
            id(node) in seen
            or not isinstance(node, dict)
            or not all(isinstance(k, str) for k in node)
            or len(path) > 8
        ):
            return id(node) in seen and seen[id(node)]
        seen[id(node)] = False
        inside = [search(value, (*path, k)) for k, value in node.items()]
        arrays = {k: v for k, v in node.items() if isinstance(v, np.ndarray)}
        if arrays and not any(inside):
            found[".".join(path)] = arrays
        seen[id(node)] = any(inside) or bool(arrays)
        return seen[id(node)]

    search(tree, (key,) if key else ())
    if len(found) == 1:
        return next(iter(found.values()))
    if found:
        listed = ", ".join(
            f"{name or '(the whole file)'} ({len(arrays)} tensors)"
            for name, arrays in found.items()
        )
        raise UserError(f"found {len(found)} state dicts: {listed}; choose one with --key=NAME")
    keys = (
        ", ".join(map(str, list(whole)[:20])) if isinstance(whole, dict) else type(whole).__name__
    )
    raise UserError(
        "found no state dict (a dict of name -> "
        f"tensor){f' under the key {key!r}' if key else ''}; it has: {keys}. "
        "Save model.state_dict(), not the model, the optimizer or a list of tensors"
    )


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
    """Names without what a wrapper put before all of them."""
    for prefix in PREFIXES:
        if tensors and all(name.startswith(prefix) for name in tensors):
            return _strip({name[len(prefix) :]: x for name, x in tensors.items()})
    return tensors


def _single(x: np.ndarray) -> np.ndarray:
    """Half precision as float32, which holds it exactly; everything else as it is, in the machine's
    byte order.
    """
    if x.dtype in (np.dtype("f2"), np.dtype(">f2"), np.dtype(ml_dtypes.bfloat16)):
        return x.astype(np.float32)
    return x.astype(x.dtype.newbyteorder("="), copy=False)


def _read_npz(path: Path) -> Tensors:
    # whose headers are checked before anything is allocated
    file = containers.open_npz(str(path))
    chosen = [name for name in file.arrays if name.startswith("param/")] or list(file.arrays)
    if wrong := [f"{name} {file.faults[name]}" for name in chosen if name in file.faults]:
        raise UserError(f"its array {wrong[0]}; the file is damaged")
    found = {name.removeprefix("param/"): file.read(name, ()) for name in chosen}
    file.close()
    return found


def _read_safetensors(path: Path) -> Tensors:
    """The package checks header, offsets and sizes; only the types are ours, because NumPy has no
    bfloat16 of its own.
    """
    found = {}
    for name, entry in safetensors.deserialize(path.read_bytes()):
        if entry["dtype"] not in SAFETENSORS:
            raise UserError(
                f"tensor {name} has the type {entry['dtype']}; expected one of "
                f"{', '.join(SAFETENSORS)}"
            )
        found[name] = np.frombuffer(entry["data"], np.dtype(SAFETENSORS[entry["dtype"]])).reshape(
            entry["shape"]
        )
    return found


def _read_torch(path: Path) -> Any:
    """What `torch.save` wrote, as nested dicts, lists and arrays."""
    if not zipfile.is_zipfile(path):
        raise UserError(
            "it is no zip archive: torch before 1.6, or _use_new_zipfile_serialization=False, "
            "wrote it.  Load it "
            "with torch.load(file, weights_only=True) and save it again, with torch.save or as "
            ".safetensors"
        )
    with zipfile.ZipFile(path) as archive:
        programs = [
            name
            for name in archive.namelist()
            if name.endswith("/data.pkl") and name.count("/") == 1
        ]
        if len(programs) != 1:
            raise UserError(
                f"found {len(programs)} entries */data.pkl in the archive, expected one; is it a "
                "file of torch.save?"
            )
        root = programs[0].removesuffix("data.pkl")
        if any(name.startswith(f"{root}code/") for name in archive.namelist()):
            raise UserError("it is a TorchScript program; save model.state_dict() instead")

        def raw(name: str) -> bytes:
            info = archive.getinfo(name)
            # torch never compresses; what is stored cannot outgrow the file
            if info.compress_type != zipfile.ZIP_STORED:
                raise UserError(
                    f"its entry {name} is compressed, which torch.save does not do; save it again"
                )
            return archive.read(info)

        big = f"{root}byteorder" in archive.namelist() and raw(f"{root}byteorder").strip() == b"big"
        storages: dict[str, Storage] = {}

        def storage(identity: Any) -> Storage:
            kind, type_, key, _, count = identity
            if (
                kind != "storage"
                or not isinstance(type_, Global)
                or type_.name not in STORAGES
                or not re.fullmatch(r"\d+", key)
            ):
                raise UserError(
                    f"found the storage {identity!r}, expected one of {', '.join(STORAGES)}"
                )
            dtype = STORAGES[type_.name]
            if key not in storages:
                data = raw(f"{root}data/{key}")
                if type(count) is not int or not 0 <= count * dtype.itemsize <= len(data):
                    raise UserError(
                        f"storage {key} should hold {count} numbers of {dtype}, but has "
                        f"{len(data)} bytes"
                    )
                storages[key] = Storage(
                    np.frombuffer(data, dtype.newbyteorder(">") if big else dtype, count)
                )
            if storages[key].values.dtype.itemsize != dtype.itemsize:
                raise UserError(
                    f"storage {key} is used as {storages[key].values.dtype} and as {dtype}"
                )
            return storages[key]

        return _interpret(raw(programs[0]), storage)


def _interpret(program: bytes, storage: Callable[[Any], Storage]) -> Any:
    """Follow the instructions of a pickle that build containers; `storage` answers its persistent
    identities.
    """
    stack, marks, memo = [], [], {}

    def since_mark() -> list:
        start = marks.pop()
        items = stack[start:]
        del stack[start:]
        return items

    def pop(n: int) -> list:
        items = stack[len(stack) - n :]
        del stack[len(stack) - n :]
        return items

    constants = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
    empty = {"EMPTY_DICT": dict, "EMPTY_LIST": list, "EMPTY_TUPLE": tuple, "EMPTY_SET": list}
    for opcode, argument, _ in pickletools.genops(program):
        name = opcode.name
        if name == "STOP":
            return stack.pop()
        if name in ("PROTO", "FRAME"):
            continue
        if name in constants:
            stack.append(constants[name])
        elif name in empty:
            stack.append(empty[name]())
        elif name == "MARK":
            marks.append(len(stack))
        elif name in ("BINPUT", "LONG_BINPUT", "PUT", "MEMOIZE"):
            memo[len(memo) if name == "MEMOIZE" else argument] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET", "GET"):
            stack.append(memo[argument])
        elif name in ("TUPLE", "TUPLE1", "TUPLE2", "TUPLE3"):
            stack.append(tuple(since_mark() if name == "TUPLE" else pop(int(name[-1]))))
        elif name in ("APPEND", "APPENDS", "ADDITEMS"):
            items = pop(1) if name == "APPEND" else since_mark()
            stack[-1].extend(items)
        elif name in ("SETITEM", "SETITEMS"):
            items = pop(2) if name == "SETITEM" else since_mark()
            stack[-1].update(zip(items[::2], items[1::2], strict=True))
        elif name in ("GLOBAL", "STACK_GLOBAL"):
            stack.append(Global(argument if name == "GLOBAL" else " ".join(pop(2))))
        elif name == "BINPERSID":
            stack.append(storage(stack.pop()))
        elif name in ("REDUCE", "NEWOBJ", "OBJ", "INST"):
            called = pop(2) if name in ("REDUCE", "NEWOBJ") else since_mark()
            stack.append(
                _call(Global(argument), called) if name == "INST" else _call(called[0], called[1])
            )
        elif (
            name == "BUILD"
        ):  # attributes of an OrderedDict (`_metadata`) or the state of a NumPy type: not kept
            pop(1)
            if not isinstance(stack[-1], (dict, Ignored)):
                raise UserError(
                    f"it would set the state of a {type(stack[-1]).__name__}, which is refused"
                )
        elif (
            argument is not None
            and opcode.stack_before == []
            and opcode.stack_after[0] is not pickletools.anyobject
        ):
            stack.append(argument)  # a number, a text or bytes
        else:
            what = name if argument is None else f"{name} ({argument})"
            raise UserError(
                f"its pickle uses {what}, which no state dict needs; refused, nothing was executed"
            )
    raise UserError("its pickle ends without a result")


def _call(function: Any, arguments: Any) -> Any:
    """The functions that stand in state dicts; anything else is refused by name, and was neither
    looked up nor called.
    """
    name = function.name if isinstance(function, Global) else type(function).__name__
    if name == "torch._utils _rebuild_tensor_v2" or name == "torch._utils _rebuild_tensor":
        return _tensor(*arguments[:4])
    if name == "torch._utils _rebuild_parameter":
        return arguments[0]
    if name == "collections OrderedDict":
        return dict(*arguments)
    if name == "torch Size":
        return tuple(*arguments)
    if name in NO_TENSORS:
        return Ignored()
    raise UserError(
        f"it would call {name.replace(' ', '.')}, which is refused (nothing was executed).  If you "
        "trust the file, "
        "save its state dict alone: torch.save(model.state_dict(), file), or as .safetensors"
    )


def _tensor(
    storage: Any, offset: int, size: tuple[int, ...], stride: tuple[int, ...]
) -> np.ndarray:
    """A view of the storage, refused unless every element lies inside and it has no more elements
    than the storage.
    """
    what = f"a tensor of size {size}, strides {stride}, offset {offset}"
    numbers = (offset, *size, *stride)
    if (
        not isinstance(storage, Storage)
        or len(size) != len(stride)
        or any(type(n) is not int or n < 0 for n in numbers)
    ):
        raise UserError(f"found {what} on a {type(storage).__name__}, which is not valid")
    count, values = math.prod(size), storage.values
    last = offset + sum((n - 1) * s for n, s in zip(size, stride))
    if count > values.size or (count and last >= values.size):
        raise UserError(f"found {what}, which does not fit its storage of {values.size} numbers")
    if not count:
        return np.zeros(size, values.dtype)
    steps = [s * values.itemsize for s in stride]
    return np.lib.stride_tricks.as_strided(values[offset:], size, steps, writeable=False)
