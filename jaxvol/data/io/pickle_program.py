"""The pickle in a file of `torch.save`, which is a program, followed without being run.

`pickletools` lists its instructions; those that build containers are followed here, and the few
functions that stand for tensors are carried out by `_call`.  A pickle that calls anything else is
refused with the name of what it would have called.

A program can name what it has built again and again, so that a few bytes stand for endless work:
a tuple of two tuples of two tuples ..., a list of a million pairs made into a thousand dicts.
Therefore nothing that is shared is looked into (keys of dicts are strings or small numbers,
messages are cut short), and what calls copy, together, is no more than the program is long.
"""

from __future__ import annotations

import pickletools
from collections.abc import Callable
from typing import Any, NamedTuple

from jaxvol.data.io.torch_tensors import short, tensor
from jaxvol.types import UserError

MAX_NAME = 256  # characters of a function's name
MAX_NUMBER = 1 << 512  # of any number; those of torch have 64 bits
MAX_KEY = 1 << 60  # of a number as a key: larger ones can be made to collide
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
CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
EMPTY = {"EMPTY_DICT": dict, "EMPTY_LIST": list, "EMPTY_TUPLE": tuple, "EMPTY_SET": list}


class Global(NamedTuple):
    """A function or class that a pickle names; it stays a name."""

    name: str


class Ignored:
    """A value that is no tensor and no container, such as a NumPy scalar."""

    def __repr__(self) -> str:
        return "(no name)"


class Machine:
    """Stack, marks and memo of a program; `left` is what its calls may still copy."""

    def __init__(self, length: int):
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}
        self.left = length

    def pop(self, n: int) -> list[Any]:
        if n > len(self.stack):
            raise IndexError("pop from an empty stack")
        items = self.stack[len(self.stack) - n :]
        del self.stack[len(self.stack) - n :]
        return items

    def since_mark(self) -> list[Any]:
        return self.pop(len(self.stack) - self.marks.pop())

    def copy(self, items: Any) -> Any:
        """The items, to be copied once."""
        self.left -= len(items)
        if self.left < 0:
            raise UserError("its pickle copies the same values over and over, which is refused")
        return items


def result(program: bytes, storage: Callable[[Any], Any]) -> Any:
    """What the program builds, as nested dicts, lists and arrays; `storage` answers its persistent
    identities.
    """
    machine = Machine(len(program))
    for opcode, argument, _ in pickletools.genops(program):
        name = opcode.name
        if name == "STOP":
            return machine.stack.pop()
        if name in ("PROTO", "FRAME"):
            continue
        if isinstance(argument, int) and abs(argument) >= MAX_NUMBER:
            raise UserError("its pickle holds a number of more than 512 bits, which is refused")
        if _remember(machine, name, argument) or _build(machine, name):
            continue
        if name == "BINPERSID":
            machine.stack.append(storage(machine.stack.pop()))
        elif _is_call(name):
            _follow_call(machine, name, argument)
        elif (
            argument is not None
            and opcode.stack_before == []
            and opcode.stack_after[0] is not pickletools.anyobject
        ):
            machine.stack.append(argument)  # a number, a text or bytes
        else:
            what = name if argument is None else f"{name} ({short(argument)})"
            raise UserError(
                f"its pickle uses {what}, which no state dict needs; refused, nothing was executed"
            )
    raise UserError("its pickle ends without a result")


def _remember(machine: Machine, name: str, argument: Any) -> bool:
    """Follow an instruction that moves values between stack and memo; whether it was one."""
    stack, memo = machine.stack, machine.memo
    if name in CONSTANTS:
        stack.append(CONSTANTS[name])
    elif name == "MARK":
        machine.marks.append(len(stack))
    elif name in ("BINPUT", "LONG_BINPUT", "PUT", "MEMOIZE"):
        memo[len(memo) if name == "MEMOIZE" else argument] = stack[-1]
    elif name in ("BINGET", "LONG_BINGET", "GET"):
        stack.append(memo[argument])
    else:
        return False
    return True


def _build(machine: Machine, name: str) -> bool:
    """Follow an instruction that builds a container; whether it was one."""
    stack = machine.stack
    if name in EMPTY:
        stack.append(EMPTY[name]())
    elif name in ("TUPLE", "TUPLE1", "TUPLE2", "TUPLE3"):
        items = machine.since_mark() if name == "TUPLE" else machine.pop(int(name[-1]))
        stack.append(tuple(items))
    elif name in ("APPEND", "APPENDS", "ADDITEMS"):
        items = machine.pop(1) if name == "APPEND" else machine.since_mark()
        stack[-1].extend(items)
    elif name in ("SETITEM", "SETITEMS"):
        items = machine.pop(2) if name == "SETITEM" else machine.since_mark()
        stack[-1].update(zip(map(_key, items[::2]), items[1::2], strict=True))
    else:
        return False
    return True


def _key(value: Any) -> Any:
    """A key of a dict: strings and small numbers as they are; for any other, whose hash may take
    for ever, a mark that it is no name of a tensor.
    """
    if isinstance(value, (str, bool)) or value is None:
        return value
    if isinstance(value, int) and abs(value) < MAX_KEY:
        return value
    return Ignored()


def _is_call(name: str) -> bool:
    return name in ("GLOBAL", "STACK_GLOBAL", "REDUCE", "NEWOBJ", "OBJ", "INST", "BUILD")


def _follow_call(machine: Machine, name: str, argument: Any) -> None:
    """Follow an instruction that names or calls a function, or sets the state of an object."""
    stack = machine.stack
    if name in ("GLOBAL", "STACK_GLOBAL"):
        words = [argument] if name == "GLOBAL" else machine.pop(2)
        if not all(isinstance(word, str) and len(word) <= MAX_NAME for word in words):
            raise UserError("its pickle names a function by what is no name")
        stack.append(Global(" ".join(words)))
    elif name == "BUILD":
        # attributes of an OrderedDict (`_metadata`) or the state of a NumPy type: left out
        machine.pop(1)
        if not isinstance(stack[-1], (dict, Ignored)):
            raise UserError(
                f"it would set the state of a {type(stack[-1]).__name__}, which is refused"
            )
    elif name == "INST":
        stack.append(_call(Global(argument), machine.since_mark(), machine))
    else:
        called = machine.since_mark() if name == "OBJ" else machine.pop(2)
        stack.append(_call(called[0], called[1], machine))


def _call(function: Any, arguments: Any, machine: Machine) -> Any:
    """The functions that stand in state dicts; anything else is refused by name, and was neither
    looked up nor called.
    """
    name = function.name if isinstance(function, Global) else type(function).__name__
    if name == "torch._utils _rebuild_tensor_v2" or name == "torch._utils _rebuild_tensor":
        return tensor(*arguments[:4])
    if name == "torch._utils _rebuild_parameter":
        return arguments[0]
    if name == "collections OrderedDict":
        entries = {}
        for key, value in machine.copy(arguments[0]) if arguments else ():
            entries[_key(key)] = value
        return entries
    if name == "torch Size":
        return tuple(machine.copy(arguments[0])) if arguments else ()
    if name in NO_TENSORS:
        return Ignored()
    raise UserError(
        f"it would call {name[:MAX_NAME].replace(' ', '.')}, which is refused (nothing was "
        "executed).  If you trust the file, save its state dict alone: "
        "torch.save(model.state_dict(), file), or as .safetensors"
    )
