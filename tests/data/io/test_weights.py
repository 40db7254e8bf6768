"""Files of weights are read without executing anything in them; what they hold comes out, what is
wrong with them is said.
"""

import json
import pickle
import struct
import zipfile

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from jaxvol.data.io import weights
from jaxvol.types import UserError
from tests.data.io.pickles import Call, Named, opcodes, save, tensor

STATE = {
    "a.weight": tensor("Float", "0", 12, (3, 2), (1, 3), 4),
    "a.bias": tensor("Float", "0", 12, (2,), (6,)),
}
NUMBERS = np.arange(12, dtype=np.float32)


def test_tensors_are_views_of_their_storages(tmp_path):
    state = STATE | {
        "half": tensor("Half", "1", 2, (2,), (1,)),
        "brain": tensor("BFloat16", "2", 2, (2,), (1,)),
        "complex": tensor("ComplexFloat", "3", 2, (1, 2), (2, 1)),
        "steps": tensor("Long", "4", 1, (), ()),
        "on": tensor("Bool", "5", 2, (2,), (1,)),
        "nothing": tensor("Float", "0", 12, (0, 3), (3, 1)),
        "parameter": Call(
            "torch._utils _rebuild_parameter",
            (STATE["a.bias"], True, Call("collections OrderedDict", ())),
        ),
    }
    path = save(
        tmp_path / "a.pt",
        Call("collections OrderedDict", ([list(pair) for pair in state.items()],)),
        d0=NUMBERS,
        d1=np.array([0.5, -3], np.float16),
        d2=np.array([1.5, 2], ml_dtypes.bfloat16),
        d3=np.array([1j, 2], np.complex64),
        d4=np.array([9]),
        d5=np.array([True, False]),
    )
    tensors = weights.read(path)
    np.testing.assert_array_equal(tensors["a.weight"], [[4, 7], [5, 8], [6, 9]])
    np.testing.assert_array_equal(tensors["a.bias"], [0, 6])
    np.testing.assert_array_equal(tensors["parameter"], [0, 6])
    assert (
        tensors["half"].tolist() == [0.5, -3]
        and tensors["brain"].tolist() == [1.5, 2]
        and tensors["steps"] == 9
    )
    assert tensors["half"].dtype == tensors["brain"].dtype == np.float32 and tensors[
        "complex"
    ].tolist() == [[1j, 2]]
    assert tensors["on"].tolist() == [True, False] and tensors["nothing"].shape == (0, 3)


def test_the_state_dict_is_found_in_a_checkpoint(tmp_path):
    other = {"w": tensor("Float", "0", 12, (1,), (1,))}
    optimizer = {
        "state": {0: {"exp_avg": other["w"], "step": 3}},
        "param_groups": [{"lr": 1e-3, "params": [0]}],
    }
    eight = b"\x8e" + struct.pack("<Q", 8) + b"\0" * 8
    scalar = Call(
        "numpy._core.multiarray scalar", (Call("numpy dtype", ("f8", False, True)), eight)
    )
    best = {
        "model": {"module." + k: v for k, v in STATE.items()},
        "epoch": 3,
        "optimizer": optimizer,
        "loss": scalar,
        "x": None,
        "rng": tensor("Float", "0", 12, (2,), (1,)),
        "history": [other, 0.5],
    }
    tensors = weights.read(save(tmp_path / "best.pt", best, d0=NUMBERS))
    assert list(tensors) == ["a.weight", "a.bias"]
    loop = b"}q\x01X\1\0\0\0ah\x01s"
    both = save(
        tmp_path / "both.pth", {"model": {"raw": STATE, "ema.0": other}, "loop": loop}, d0=NUMBERS
    )
    with pytest.raises(
        UserError,
        match=r"both.pth: found 2 state dicts: model.raw \(2 tensors\), model.ema.0 .*--key",
    ):
        weights.read(both)
    assert list(weights.read(both, "model.ema.0")) == ["w"] and list(
        weights.read(both, "model.raw.a")
    ) == ["weight", "bias"]
    with pytest.raises(UserError, match="no state dict.*under the key 'ema'; it has: model, loop"):
        weights.read(both, "ema")


SYSTEM = Named("posix system")
PROGRAMS = {
    "reduce": lambda c: Call("posix system", (c,)),
    "builtin": lambda c: Call("__builtin__ eval", (f"open({c[6:]!r}, 'w')",)),
    "nested": lambda c: {"w": STATE["a.bias"], "more": [Call("os system", (c,))]},
    "after_a_known_call": lambda c: (
        opcodes(Call("torch._utils _rebuild_parameter", (SYSTEM,))) + opcodes((c,)) + b"R"
    ),
    "inst": lambda c: b"(" + opcodes(c) + b"iposix\nsystem\n",
    "obj": lambda c: b"(" + opcodes(SYSTEM) + opcodes(c) + b"o",
    "newobj": lambda c: opcodes(SYSTEM) + opcodes((c,)) + b"\x81",
    "stack_global": lambda c: opcodes("posix") + opcodes("system") + b"\x93" + opcodes((c,)) + b"R",
    "setstate": lambda c: (
        opcodes(Named("torch._utils _rebuild_tensor_v2")) + opcodes({"__code__": c}) + b"b"
    ),
    "extension": lambda c: b"\x82\x01" + opcodes((c,)) + b"R",
    "import": lambda c: Call("importlib import_module", ("antigravity",)),
}


@pytest.mark.parametrize("how", PROGRAMS)
def test_a_program_is_refused_and_not_executed(how, tmp_path):
    canary = tmp_path / "canary"
    path = save(tmp_path / "evil.pt", {"state_dict": PROGRAMS[how](f"touch {canary}")}, d0=NUMBERS)
    with pytest.raises(
        UserError,
        match=r"evil.pt: .*(posix.system|os.system|eval|import_module|set the state|EXT1)",
    ):
        weights.read(path)
    assert not canary.exists()
    # an ordinary reader would have run it
    if how in ("reduce", "builtin", "inst", "obj", "stack_global"):
        with zipfile.ZipFile(path) as archive:
            pickle.loads(archive.read("archive/data.pkl"))
        assert canary.exists()


def numbers(size, stride, offset=0, key="0", count=12, kind="Float"):
    return tensor(kind, key, count, size, stride, offset)


@pytest.mark.parametrize(
    "bad, message",
    [
        (numbers((3, 2), (1, 3), 8), "does not fit its storage of 12"),
        (numbers((13,), (1,)), "does not fit"),
        (numbers((10**12, 2), (0, 1)), "does not fit"),
        (numbers((2,), (-1,), 5), "not valid"),
        (numbers((2,), (1,), -1), "not valid"),
        (numbers((2, 2), (1,)), "not valid"),
        (numbers((2.0,), (1,)), "not valid"),
        (numbers((2,), (1,), count=13), "13 numbers.*48 bytes"),
        (numbers((2,), (1,), count=2**62), "48 bytes"),
        (numbers((2,), (1,), key="7"), "data/7"),
        (numbers((2,), (1,), key="../x"), "found the storage"),
        (numbers((2,), (1,), kind="QUInt8"), "found the storage.*FloatStorage"),
        (Call("torch._utils _rebuild_tensor_v2", ((0,), 0, (1,), (1,))), "not valid"),
        (Call("torch._utils _rebuild_tensor_v2", ()), "TypeError"),
        (b"(", "damaged"),
        (b"R", "would call dict"),
        (b"h\x09", "damaged"),
        (b"X\xff\xff\xff\x7fa", "damaged"),
        (b"]}}u", "damaged"),
        (3, "no state dict"),
    ],
)
def test_damaged_files_are_user_errors(bad, message, tmp_path):
    with pytest.raises(UserError, match=f"(?s)bad.pt: .*{message}"):
        weights.read(save(tmp_path / "bad.pt", {"w": bad}, d0=NUMBERS))


def test_other_files_are_user_errors(tmp_path):
    for name, data, message in (
        (
            "old.pt",
            b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19.",
            "torch before 1.6.*save it again",
        ),
        ("a.safetensors", b"\xff" * 30, "cannot be read as .safetensors"),
        ("a.npz", b"PK\x03\x04", "cannot be read as .npz"),
        ("a.h5", b"", "expected one of .safetensors"),
    ):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(UserError, match=f"{name}: .*{message}"):
            weights.read(tmp_path / name)
    with pytest.raises(UserError, match="no such file"):
        weights.read(tmp_path / "none.pt")
    with pytest.raises(UserError, match="is compressed"):
        weights.read(save(tmp_path / "bomb.pt", STATE, zipfile.ZIP_DEFLATED, d0=NUMBERS))
    np.savez(tmp_path / "objects.npz", w=np.array([{}], object))
    with pytest.raises(UserError, match="objects.npz"):
        weights.read(tmp_path / "objects.npz")


def test_safetensors_and_npz(tmp_path):
    given = {
        "a.w": np.arange(6, dtype=np.float32).reshape(2, 3).T,
        "b": np.array([1.5], np.float16),
        "n": np.array(4),
    }
    safetensors.numpy.save_file(
        {k: v.copy("C") for k, v in given.items()}, tmp_path / "a.safetensors"
    )
    header = json.dumps({"w": {"dtype": "BF16", "shape": [2], "data_offsets": [0, 4]}}).encode()
    data = (
        struct.pack("<Q", len(header)) + header + np.array([1.5, -2], ml_dtypes.bfloat16).tobytes()
    )
    (tmp_path / "brain.safetensors").write_bytes(data)
    np.savez(tmp_path / "a.npz", **given)
    np.savez(
        tmp_path / "fixture.npz",
        config="{}",
        **{f"param/{k}": v for k, v in given.items()},
        **{"input/x": np.zeros(3)},
    )
    for name in ("a.safetensors", "a.npz", "fixture.npz"):
        tensors = weights.read(tmp_path / name)
        assert set(tensors) == set(given) and tensors["b"].dtype == np.float32
        assert all(np.array_equal(tensors[k], given[k]) for k in given)
    assert weights.read(tmp_path / "brain.safetensors")["w"].tolist() == [1.5, -2]
    assert list(weights.read(tmp_path / "a.npz", "a")) == ["w"]


def test_what_torch_saves_is_read_back(tmp_path):
    torch = pytest.importorskip("torch")
    net = torch.nn.Sequential(
        torch.nn.Conv3d(2, 3, 3), torch.nn.BatchNorm3d(3), torch.nn.Linear(4, 5).bfloat16()
    )
    optimizer = torch.optim.Adam(net.parameters())
    net[0](torch.ones(1, 2, 4, 4, 4)).sum().backward()
    optimizer.step()
    state = dict(net.state_dict()) | {
        "t": net[0].weight.permute(2, 3, 4, 1, 0)[1:],
        "c": torch.ones(2, dtype=torch.complex128),
        "i": torch.ones(3, dtype=torch.int16),
    }
    checkpoint = {
        "model": state,
        "optimizer": optimizer.state_dict(),
        "loss": np.float64(0.3),
        "tags": {"a"},
        "device": torch.device("cpu"),
        "shape": net[0].weight.shape,
    }
    for protocol in (2, 4, 5):
        torch.save(checkpoint, tmp_path / "a.pt", pickle_protocol=protocol)
        tensors = weights.read(tmp_path / "a.pt")
        assert set(tensors) == set(state)
        for name, value in state.items():
            np.testing.assert_array_equal(
                tensors[name],
                value.float() if value.dtype == torch.bfloat16 else value.detach().numpy(),
            )
    torch.save(net.state_dict(), tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    with pytest.raises(UserError, match="torch before 1.6"):
        weights.read(tmp_path / "old.pt")
    torch.save(net, tmp_path / "whole.pt")
    with pytest.raises(UserError, match="torch.nn.modules.*refused"):
        weights.read(tmp_path / "whole.pt")
