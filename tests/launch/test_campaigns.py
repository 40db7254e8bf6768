"""The short versions of the fault and the fuzz campaign, and properties of the readers that
hypothesis looks for exceptions to.
"""

import os
import re
import struct
import subprocess
import sys
import zipfile

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from jaxvol.data.io import files, weights
from jaxvol.runtime import memory
from jaxvol.types import UserError
from tests import ROOT

QUICK = settings(
    max_examples=40,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


def script(name, *arguments, limit=400):
    done = subprocess.run(
        [sys.executable, f"launch/campaigns/{name}.py", *arguments],
        cwd=ROOT,
        env={**os.environ, "XLA_FLAGS": ""},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=limit,
    )
    return done.returncode, done.stdout


def test_faults_short():
    status, said = script("fault_campaign", "--short")
    total = re.search(r"\*\*all\*\* \| \*\*(\d+)\*\* \| \*\*(\d+)\*\* \| \*\*(\d+)\*\*", said)
    assert (
        status == 0 and total and int(total[1]) >= 3 and total[1] == total[2] and total[3] == "0"
    ), said
    assert "Warning" not in said, said  # forking is for processes of one thread


def test_the_fault_campaign_counts_what_is_lost(tmp_path):
    """A fault that leaves other bits, one that ends without a word, and a bench that breaks itself
    are all seen, and kept in the table.
    """
    code = f"""
import sys
sys.path.insert(0, "launch/campaigns")
import fault_campaign as c
def lost(lab, tries):
    yield c.Try(False, 1, 2.0, "other bits")
def broken(lab, tries):
    yield c.Try(True, 0, 1.0)
    raise FileNotFoundError("the bench itself")
sound = lambda lab, tries: [c.Try(True, 0, 3.0)] * tries
c.FAULTS = {{"a": (lost, 1, 1), "b": (broken, 2, 2), "c": (sound, 4, 4)}}
c.Lab = lambda folder, seed: None
for only in ("", "lost"):
    sys.argv = ["x", {str(tmp_path)!r}.join(("--out=", "")), "--only=" + only]
    print(c.main())
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        text=True,
        capture_output=True,
        timeout=120,
    )
    table = (tmp_path / "faults.md").read_text()
    assert (
        done.stdout.splitlines()[-1] == "1" and "FileNotFoundError: the bench itself" in done.stdout
    ), (done.stdout, done.stderr)
    assert (
        "| a | 1 | 0 | 1 |" in table
        and "| b | 2 | 1 | 0 |" in table
        and "| c | 4 | 4 | 0 |" in table
    ), table


@pytest.mark.campaign
def test_faults(tmp_path):
    status, said = script("fault_campaign", f"--out={tmp_path}", limit=7200)
    assert status == 0 and (tmp_path / "faults.png").exists(), said


def test_fuzz_short():
    status, said = script(
        "fuzz_campaign",
        "--count=60",
        "--seed=1",
        "--only=hdf5,npy,npz,nifti,zarr,manifest,weights-npz,safetensors,torch,config",
    )
    assert status == 0 and "600 mutants, 0 defects" in said, said


@pytest.mark.campaign
def test_fuzz():
    status, said = script("fuzz_campaign", "--count=3000", limit=7200)
    assert status == 0, said


def test_the_fuzz_campaign_sees_what_it_is_for(tmp_path):
    """Readers that crash, hang, take memory, write files or raise something else are found out."""
    (tmp_path / "bad.py").write_text("""
import os, sys, time
sys.path.insert(0, "launch/campaigns")
import fuzz_campaign as c
c.SECONDS = 1
bad = {"crash": lambda p: os.kill(os.getpid(), 11), "hang": lambda p: time.sleep(60),
       "memory": lambda p: np.ones(1 << 29), "write": lambda p: (p.parent / "x").write_text(""),
       "other": lambda p: 1 / 0}
for name, reader in bad.items():
    c.SEEDS[name], c.SIDE[name] = c.SEEDS["npy"], set()
    c.READERS[name] = lambda p, reader=reader: None if "/in/" not in str(p) else reader(p)
    from pathlib import Path
    import tempfile
    print(name, c.campaign(name, 1, 0, Path(tempfile.mkdtemp()))["defects"])
""")
    done = subprocess.run(
        [sys.executable, str(tmp_path / "bad.py")],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        text=True,
        capture_output=True,
        timeout=120,
    )
    found = dict(line.split(" ", 1) for line in done.stdout.splitlines())
    for name, word in (
        ("crash", "-11"),
        ("hang", "hangs"),
        ("memory", "memory"),
        ("write", "wrote"),
        ("other", "ZeroDivisionError"),
    ):
        assert word in found[name], (done.stdout, done.stderr)


@QUICK
@given(
    content=st.binary(max_size=400),
    suffix=st.sampled_from([".h5", ".npy", ".npz", ".nii", ".nii.gz"]),
)
def test_any_bytes_are_refused_or_read(tmp_path, content, suffix):
    path = tmp_path / f"a{suffix}"
    path.write_bytes(content)
    with pytest.raises(UserError, match=re.escape(str(path))):
        files.read(str(path), "x")


@QUICK
@given(
    shape=st.lists(st.integers(0, 2**62), min_size=1, max_size=5),
    kind=st.sampled_from("<f4 >f8 |O <U9 |b1 <M8[s] |V7".split()),
    stored=st.integers(0, 4096),
)
def test_a_header_can_promise_anything_and_gets_nothing_for_it(tmp_path, shape, kind, stored):
    """Whatever an .npy declares is either there to the byte, or refused before it is allocated."""
    path = tmp_path / "a.npy"
    text = (
        f"{{'descr': '{kind}', 'fortran_order': False, 'shape': {tuple(shape)}, }}".encode().ljust(
            117
        )
        + b"\n"
    )
    path.write_bytes(b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + b"\0" * stored)
    before = memory.host_memory()
    try:
        found = files.read(str(path))
        assert found.nbytes == stored and found.shape == tuple(shape)
    except UserError as error:
        assert str(path) in str(error)
    assert memory.host_memory() - before < 64 << 20


@QUICK
@given(
    program=st.lists(
        st.sampled_from(
            [
                b"cos\nsystem\n",
                b"(",
                b"}",
                b"]",
                b")",
                b"X\x01\x00\x00\x00a",
                b"R",
                b"t",
                b"u",
                b"s",
                b"q\x00",
                b"h\x00",
                b"Q",
                b"o",
                b"b",
                b"0",
                b"2",
                b".",
                b"\x81",
                b"\x93",
                b"l",
                b"d",
                b"e",
                b"a",
                b"K\x05",
                b"\x89",
            ]
        ),
        max_size=25,
    )
)
def test_no_pickle_runs_anything(tmp_path, program):
    path = tmp_path / "a.pt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/data.pkl", b"\x80\x02" + b"".join(program) + b".")
    with pytest.raises(UserError, match=re.escape(str(path))):
        weights.read(path)


def test_a_dead_tensorboard_thread_neither_blocks_the_run_nor_its_end(tmp_path):
    """As on a full disk: thousands of values later, and at exit, nothing waits for the thread that
    is gone.
    """
    code = f"""
from tensorboardX import SummaryWriter
from jaxvol import health
board = SummaryWriter({str(tmp_path)!r}, max_queue=0)
health.loosen(board)
def full(event):
    raise OSError(28, "No space left on device")
board.file_writer.event_writer._ev_writer.write_event = full
for step in range(4000):
    board.add_scalar("x", 1.0, step)
print("through")
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        text=True,
        capture_output=True,
        timeout=60,
    )
    assert done.returncode == 0 and "through" in done.stdout, done.stderr
