"""Containers: what is written is read back, in whole and in part; every bad file gives one
UserError that says what is wrong.
"""

import gzip
import os
import struct
import threading
import zipfile

import h5py
import nibabel
import numpy as np
import pytest
import zarr

from jaxvol.data.io import files, open_files
from jaxvol.types import UserError

SUFFIXES = (".h5", ".hdf5", ".npy", ".npz", ".zarr", ".nii", ".nii.gz")
AFFINE = np.array([[0, 2.0, 0, -3], [1.5, 0, 0, 4], [0, 0, 6.5, 5], [0, 0, 0, 1]])


def volume(shape=(5, 6, 7)):
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def make(folder, suffix, array=None):
    """A file with attributes (HDF5, Zarr), a spacing (npz) or an affine (NIfTI), and the key of its
    volume.
    """
    array = volume() if array is None else array
    path = str(folder / f"a{suffix}")
    if suffix in (".h5", ".hdf5"):
        with h5py.File(path, "w") as file:
            file.attrs["box_size"] = 128.0
            file["group/rho"] = array
            file["group/rho"].attrs.update({"unit": "1 + delta", "spacing": [1.0, 2.0, 3.0]})
            file["other"] = np.arange(3)
        return path, "group/rho"
    if suffix == ".npz":
        np.savez_compressed(path, rho=array, spacing=np.array([1.0, 2.0, 3.0]))
        return path, "rho"
    if suffix == ".zarr":
        root = zarr.open_group(path, mode="w")
        root.attrs["box_size"] = 128.0
        node = root.create_array(
            "group/rho", shape=array.shape, dtype=array.dtype, chunks=(2, 3, 4)
        )
        node[...] = array
        node.attrs.update({"unit": "1 + delta", "spacing": [1.0, 2.0, 3.0]})
        return path, "group/rho"
    if suffix == ".npy":
        np.save(path, array)
    else:
        nibabel.save(nibabel.Nifti1Image(array, AFFINE), path)
    return path, ""


def error(function, *args, **kwargs):
    with pytest.raises(UserError) as caught:
        function(*args, **kwargs)
    assert caught.value.__cause__ is None and (
        caught.value.__suppress_context__ or caught.value.__context__ is None
    )
    return str(caught.value)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_reads_whole_and_part_and_writes_a_twin(tmp_path, suffix):
    path, key = make(tmp_path, suffix)
    assert files.inspect(path)[key] == ((5, 6, 7), np.dtype(np.float32))
    np.testing.assert_array_equal(files.read(path, key, ndim=(3, 4)), volume())
    index = (slice(1, 4), 2, slice(None, None, 2))
    np.testing.assert_array_equal(files.read(path, key, index), volume()[1:4, 2, ::2])
    twin = str(tmp_path / "deep" / f"twin{suffix}")
    prediction = 2 * volume().astype(np.float64)
    files.write(twin, "prediction", prediction, like=path, like_key=key)
    # over an existing file or folder
    files.write(twin, "prediction", prediction, like=path, like_key=key)
    back = files.read(twin, "prediction")
    assert back.dtype == np.float32 and os.listdir(tmp_path / "deep") == [f"twin{suffix}"]
    np.testing.assert_array_equal(back, prediction.astype(np.float32))
    before, after = files.metadata(path, key), files.metadata(twin, "prediction")
    np.testing.assert_equal(after, before)
    if suffix.startswith(".nii"):
        np.testing.assert_allclose(after["affine"], AFFINE)
        np.testing.assert_allclose(after["spacing"], (1.5, 2.0, 6.5))
    elif suffix != ".npy":
        assert after["spacing"] == (1.0, 2.0, 3.0)
    if suffix in (".h5", ".zarr"):
        assert (
            after["attributes"]["unit"] == "1 + delta"
            and after["file_attributes"]["box_size"] == 128.0
        )


def test_write_fails_whole_or_not_at_all(tmp_path):
    path, _ = make(tmp_path, ".npy")
    other, _ = make(tmp_path, ".nii")
    assert "same extension" in error(files.write, path, "", volume(), like=other)
    (tmp_path / "file").write_text("")
    assert "cannot be written" in error(files.write, str(tmp_path / "file" / "a.npy"), "", volume())
    np.testing.assert_array_equal(files.read(path), volume())
    assert sorted(os.listdir(tmp_path)) == ["a.nii", "a.npy", "file"]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_missing_file_key_and_axes(tmp_path, suffix):
    path, key = make(tmp_path, suffix)
    missing = str(tmp_path / f"none{suffix}")
    assert missing in (message := error(files.read, missing)) and "No such file" in message
    message = error(files.read, path, key, ndim=(4, 5))
    assert path in message and "(5, 6, 7)" in message and "expected 4 or 5 axes" in message
    if key:
        message = error(files.read, path, "nonsense")
        assert f"no key 'nonsense'; keys found: '{key}' (5, 6, 7)" in message
    if key and suffix != ".zarr":
        assert "the key must be named" in error(files.read, path)


def test_extension_and_folder(tmp_path):
    assert "expected one of .h5" in error(files.read, str(tmp_path / "a.mat"))
    (tmp_path / "a.npy").mkdir()
    (tmp_path / "a.zarr").write_text("")
    assert "found a folder; expected a file" in error(files.read, str(tmp_path / "a.npy"))
    assert "expected a folder" in error(files.read, str(tmp_path / "a.zarr"))


@pytest.mark.parametrize("suffix", [s for s in SUFFIXES if s != ".zarr"])
def test_truncated_at_any_length(tmp_path, suffix):
    path, key = make(tmp_path, suffix)
    data = open(path, "rb").read()
    for length in (0, 1, 7, 60, 100, len(data) // 2, len(data) - 1):
        with open(path, "wb") as file:
            file.write(data[:length])
        message = error(files.read, path, key)
        assert path in message and ("truncated" in message or "no key" in message), (
            length,
            message,
        )


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_flipped_header_bytes_never_escape(tmp_path, suffix):
    """A flipped byte reads the same, reads other numbers, or is one UserError; nothing else is ever
    raised.
    """
    path, key = make(tmp_path, suffix)
    target = os.path.join(path, "group/rho/zarr.json") if suffix == ".zarr" else path
    data, refused = open(target, "rb").read(), 0
    places = np.random.default_rng(1).choice(min(len(data), 400), 60, replace=False)
    for place in places:
        mutant = bytearray(data)
        mutant[place] ^= 1 << (place % 8)
        with open(target, "wb") as file:
            file.write(mutant)
        # a folder's own time does not change with its files
        os.utime(path, ns=(int(place) + 1, int(place) + 1))
        try:
            files.read(path, key)
        except UserError as fault:
            refused += 1
            assert path in str(fault)
    assert refused >= 1


def test_absurd_sizes_are_refused_before_allocation(tmp_path):
    path, _ = make(tmp_path, ".npy")
    with open(path, "wb") as file:
        np.lib.format.write_array_header_1_0(
            file, {"descr": "<f4", "fortran_order": False, "shape": (1 << 20, 1 << 20, 8)}
        )
        file.write(b"0" * 64)
    assert "but 64 bytes are stored" in error(files.read, path)
    header = open(path, "rb").read()[:-64]
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("rho.npy", header + b"0" * 64)
    assert "but 64 bytes are stored" in error(files.read, str(tmp_path / "a.npz"), "rho")
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("never", (4, 4, 4), "f4")
        file.create_dataset(
            "sparse", (1 << 14, 1 << 14, 1 << 14), "f4", chunks=(8, 8, 8), compression="gzip"
        )
    assert "but 0 bytes are stored" in error(files.read, str(tmp_path / "a.h5"), "never")
    assert "cannot hold it" in error(files.read, str(tmp_path / "a.h5"), "sparse", (0,))
    zarr.open_group(str(tmp_path / "a.zarr"), mode="w").create_array(
        "x", shape=(1 << 14,) * 3, chunks=(64,) * 3, dtype="f4"
    )
    assert "cannot hold it" in error(files.read, str(tmp_path / "a.zarr"), "x")
    for suffix in (".nii", ".nii.gz"):
        path, _ = make(tmp_path, suffix)
        image = nibabel.load(path)
        raw = bytearray(image.header.binaryblock)
        raw[42:48] = struct.pack("<3h", 30000, 30000, 30000)
        with (open if suffix == ".nii" else gzip.open)(path, "wb") as file:
            file.write(bytes(raw) + b"\0" * 900)
        message = error(files.read, path)
        assert "(30000, 30000, 30000)" in message and (
            "bytes are stored" in message or "cannot hold it" in message
        )


def test_nothing_is_unpickled(tmp_path):
    class Bomb:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "executed"),)

    bomb = np.array([Bomb()], dtype=object)
    np.save(tmp_path / "a.npy", bomb, allow_pickle=True)
    np.savez(tmp_path / "a.npz", bomb=bomb)
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["text"] = "abc"
    assert "unpickled" in error(files.read, str(tmp_path / "a.npy"))
    assert "unpickled" in error(files.read, str(tmp_path / "a.npz"), "bomb")
    assert "expected numbers" in error(files.read, str(tmp_path / "a.h5"), "text")
    numcodecs = pytest.importorskip("numcodecs")
    folder = tmp_path / "a.zarr"
    folder.mkdir()
    for dtype in ("|O", "<f4"):
        (folder / ".zarray").write_text(
            f'{{"zarr_format": 2, "shape": [1], "chunks": [1], "dtype": "{dtype}", '
            '"compressor": null, "fill_value": null, "order": "C", "filters": [{"id": "pickle"}]}'
        )
        (folder / "0").write_bytes(numcodecs.Pickle().encode(bomb))
        os.utime(folder, ns=(len(dtype), len(dtype)))
        error(files.read, str(folder))
    assert not (tmp_path / "executed").exists()


def test_external_data_and_complex_numbers_are_refused(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("far", (4,), "u1", external=[("/etc/hostname", 0, 4)])
        file["complex"] = np.ones(3, complex)
        file["empty"] = np.zeros((0, 4, 4))
    assert "other files" in error(files.read, str(tmp_path / "a.h5"), "far")
    assert "complex128" in error(files.read, str(tmp_path / "a.h5"), "complex")
    assert "holds no values" in error(files.read, str(tmp_path / "a.h5"), "empty")


def test_a_file_is_opened_once_per_thread_and_again_when_it_changes(tmp_path, monkeypatch):
    path, key = make(tmp_path, ".h5")
    opened = []
    opener = open_files.OPENERS[".h5"]
    monkeypatch.setitem(
        open_files.OPENERS, ".h5", lambda p: opened.append(threading.get_ident()) or opener(p)
    )

    def reads():
        for i in range(5):
            np.testing.assert_array_equal(files.read(path, key, (i,)), volume()[i])

    threads = [threading.Thread(target=reads) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(opened) == 3
    reads()
    files.write(path, "group/rho", 3 * volume(), like=path, like_key=key)
    np.testing.assert_array_equal(files.read(path, key), 3 * volume())
    for i in range(open_files.MAX_OPEN + 5):
        np.save(tmp_path / f"{i}.npy", np.full(3, i))
        assert files.read(str(tmp_path / f"{i}.npy"))[0] == i
    assert len(open_files._local.opened) == open_files.MAX_OPEN


def test_pieces_of_an_npz_decode_it_once(tmp_path, monkeypatch):
    path, key = make(tmp_path, ".npz")
    calls = []
    read_array = np.lib.format.read_array
    monkeypatch.setattr(
        np.lib.format, "read_array", lambda *a, **k: calls.append(1) or read_array(*a, **k)
    )
    for i in range(5):
        files.read(path, key, (i,))[...] = 0  # the caller owns what it gets
    np.testing.assert_array_equal(files.read(path, key, (4,)), volume()[4])
    assert len(calls) == 1


def test_fingerprint_follows_the_content(tmp_path):
    for suffix in (".npy", ".zarr"):
        path, key = make(tmp_path, suffix)
        first = files.fingerprint(path)
        assert first == files.fingerprint(path)
        files.write(path, "group/rho", np.zeros((5, 6, 7)))
        assert files.fingerprint(path) != first
