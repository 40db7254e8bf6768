"""What a header declares binds what is unpacked: files that promise what they cannot keep cost no
more memory than they declare, one chunk and 64 MiB, no more than ten seconds, and give one error.

The files are those of the fuzz campaign (launch/campaigns/fuzz_hostile.py, fuzz_chunks.py and
fuzz_torch.py), which tries each on its reader in a process with limits; here every one is a test.
"""

import json
import os
import subprocess
import sys

import h5py
import numpy as np
import pytest
import zarr

from jaxvol.data import box, manifest, volumes
from jaxvol.data.io import files
from jaxvol.runtime.regular_files import open_regular
from jaxvol.types import UserError
from tests import ROOT
from tests.data.toys import config_of, error

READERS = ("hdf5", "npy", "npz", "nifti", "zarr", "manifest", "weights-npz", "torch", "config")
# what is sound, or declares what it costs; anything else is refused
READ = {
    ("hdf5", "many"),
    ("zarr", "chunks of one voxel"),
    ("zarr", "links in a circle"),
    ("manifest", "digits"),
    ("manifest", "rows"),
    ("torch", "names"),
    ("torch", "shared halves"),
}
CHILD = """
import json, sys, tempfile
from pathlib import Path
sys.path.insert(0, "launch/campaigns")
import fuzz_campaign
fuzz_campaign.HOSTILE_SIZE = 3 << 25  # enough to be seen
with tempfile.TemporaryDirectory() as folder:
    print(json.dumps(fuzz_campaign.campaign(sys.argv[1], 0, 0, Path(folder))))
"""


@pytest.mark.slow  # test_fuzz_short of tests/launch has the same files, and no defect
@pytest.mark.parametrize("reader", READERS)
def test_a_promise_costs_what_is_declared(reader):
    done = subprocess.run(
        [sys.executable, "-c", CHILD, reader],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"},
        text=True,
        capture_output=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    row = json.loads(done.stdout.splitlines()[-1])
    assert not row["defects"] and len(row["cases"]) == row["hostile"] >= 3
    read = {case for case, verdict in row["cases"].items() if verdict == "read"}
    assert read == {case for name, case in READ if name == reader}


def write_chunks(path, version=2, dtype="f4"):
    """Two of the six chunks of a volume, in a Zarr array or an HDF5 data set."""
    if path.suffix == ".h5":
        with h5py.File(path, "w") as file:
            node = file.create_dataset(
                "x", (6, 4, 4), dtype, chunks=(2, 4, 2), fillvalue=5, compression="gzip"
            )
            node[:2] = 1
        return str(path)
    node = zarr.create_array(
        str(path), shape=(6, 4, 4), chunks=(2, 4, 2), dtype=dtype, fill_value=5, zarr_format=version
    )
    node[:2] = 1
    return str(path)


@pytest.mark.parametrize("suffix", [".h5", ".zarr"])
def test_missing_chunks_are_counted_said_once_and_refused_on_demand(suffix, tmp_path, caplog):
    path = write_chunks(tmp_path / f"a{suffix}")
    assert files.metadata(path)["missing_chunks"] == 4
    for _ in range(3):
        values = files.read(path)
    assert (values[:2] == 1).all() and (values[2:] == 5).all()
    said = [record.message for record in caplog.records]
    assert len(said) == 1 and "4 of its 6 chunks are missing and read as the fill value" in said[0]
    files.header(path, missing_chunks="warn")
    with pytest.raises(UserError, match="4 of its 6 chunks are missing.*data.missing_chunks"):
        files.header(path, missing_chunks="error")
    with pytest.raises(UserError, match="data.missing_chunks is 'no'"):
        files.header(path, missing_chunks="no")


def test_datasets_refuse_missing_chunks_on_demand(tmp_path):
    for i in range(3):
        write_chunks(tmp_path / f"{i}.zarr")
    by_dataset = {
        volumes: {"root": str(tmp_path), "layout": "single", "input.files": "*.zarr"},
        box: {"input.path": str(tmp_path / "0.zarr"), "crop": (1, 2, 2), "margin": (0, 0, 0)},
    }
    for module, settings in by_dataset.items():
        name = module.fields().name
        assert module.source(config_of(name, **settings)).spec.fields
        strict = config_of(name, missing_chunks="error", **settings)
        assert "4 of its 6 chunks are missing" in error(module.source, strict)


def test_an_array_without_any_chunk_is_an_error(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("x", (6, 4, 4), "f4", chunks=(2, 4, 2))
    zarr.create_array(str(tmp_path / "a.zarr"), shape=(6, 4), chunks=(2, 4), dtype="f4")
    for name, total in (("a.h5", 6), ("a.zarr", 3)):
        with pytest.raises(UserError, match=f"0 of its {total} chunks are stored"):
            files.read(str(tmp_path / name))


def test_a_copy_that_broke_off_is_found(tmp_path):
    path = tmp_path / "a.zarr"
    node = zarr.create_array(str(path), shape=(4, 4), chunks=(2, 2), dtype="f4", zarr_format=2)
    node[...] = np.arange(1, 17).reshape(4, 4)
    assert files.metadata(str(path))["missing_chunks"] == 0
    files.header(str(path), missing_chunks="error")
    (path / "1.1").unlink()
    os.utime(path, ns=(1, 1))
    with pytest.raises(UserError, match="1 of its 4 chunks"):
        files.header(str(path), missing_chunks="error")


def test_a_link_inside_a_store_is_followed(tmp_path):
    path = tmp_path / "a.zarr"
    node = zarr.create_array(str(path), shape=(4,), chunks=(2,), dtype="f4", zarr_format=2)
    node[...] = [1, 2, 3, 4]
    (path / "1").unlink()
    (path / "1").symlink_to("0")
    assert files.read(str(path)).tolist() == [1, 2, 1, 2]
    (tmp_path / "link.zarr").symlink_to(path)
    assert files.read(str(tmp_path / "link.zarr")).tolist() == [1, 2, 1, 2]


def test_only_regular_files_are_opened(tmp_path):
    (tmp_path / "a").write_bytes(b"sound")
    (tmp_path / "link").symlink_to("a")
    os.mkfifo(tmp_path / "pipe")
    for name in ("a", "link"):
        with open_regular(tmp_path / name) as file:
            assert file.read() == b"sound"
    for name, found in (("pipe", "a named pipe"), ("", "a folder")):
        with pytest.raises(UserError, match=f"found {found}; expected a regular file"):
            open_regular(tmp_path / name)
    with pytest.raises(UserError, match="NUL"):
        open_regular(f"{tmp_path}/a\0b")
    with pytest.raises(FileNotFoundError):
        open_regular(tmp_path / "none")


def test_long_numbers_are_in_their_natural_order():
    names = ["box_10", "box_9", "box_009", "a", "7", "box_" + "9" * 6000, "box_1" + "0" * 6000]
    assert sorted(names, key=manifest.natural) == ["7", "a", *names[1:3], names[0], *names[5:]]
