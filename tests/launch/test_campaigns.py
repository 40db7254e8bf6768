"""The short versions of the fault and the fuzz campaign, and properties of the readers."""

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
    """(exit status, output) of a campaign."""
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


def python(code, limit=120):
    """A finished process of Python that ran `code` in the checkout."""
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        text=True,
        capture_output=True,
        timeout=limit,
    )


def test_faults_short():
    status, output = script("fault_campaign", "--short")
    total = re.search(r"\*\*all\*\* \| \*\*(\d+)\*\* \| \*\*(\d+)\*\* \| \*\*(\d+)\*\*", output)
    assert status == 0 and total, output
    tries, survived, lost = (int(number) for number in total.groups())
    assert tries == survived >= 3 and lost == 0, output
    assert "Warning" not in output, output  # forking is for processes of one thread


def test_every_plant_finds_the_function_that_it_replaces():
    """The long campaign plants them all; this sees at once that one of them was renamed."""
    code = """
from launch.campaigns import fault_plants as plants
made = [make(1, 0.0) for make in plants.PHASES.values()]
made += [plants.while_resuming(cut, True) for cut in (False, True)]
made += [plants.before_the_first_step(), plants.at_step(1, plants.huge), plants.jumping_clock(0.0)]
made += [plants.nan_in_training_files(), plants.read_that_hangs(1)]
for plant in made:
    plant()
print(len(made), "plants")
"""
    done = python(code)
    assert done.stdout == "15 plants\n", done.stderr


def test_the_fault_campaign_counts_what_is_lost(tmp_path):
    """Other bits, and a campaign that breaks itself, are seen and kept in the table."""
    code = f"""
import sys
from launch.campaigns import fault_campaign as c
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
    done = python(code)
    assert done.stdout.splitlines()[-1:] == ["1"], (done.stdout, done.stderr)
    assert "FileNotFoundError: the bench itself" in done.stdout
    table = (tmp_path / "faults.md").read_text()
    for row in ("| a | 1 | 0 | 1 |", "| b | 2 | 1 | 0 |", "| c | 4 | 4 | 0 |"):
        assert row in table, table


@pytest.mark.campaign
def test_faults(tmp_path):
    status, output = script("fault_campaign", f"--out={tmp_path}", limit=7200)
    assert status == 0 and (tmp_path / "faults.png").exists(), output


def test_fuzz_short():
    status, output = script(
        "fuzz_campaign",
        "--count=60",
        "--seed=1",
        "--only=hdf5,npy,npz,nifti,zarr,manifest,weights-npz,safetensors,torch,config",
    )
    assert status == 0 and "690 files, 0 defects" in output, output


@pytest.mark.campaign
def test_fuzz():
    status, output = script("fuzz_campaign", "--count=3000", limit=7200)
    assert status == 0, output


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
    defects = dict(line.split(" ", 1) for line in done.stdout.splitlines())
    for name, word in (
        ("crash", "-11"),
        ("hang", "hangs"),
        ("memory", "memory"),
        ("write", "wrote"),
        ("other", "ZeroDivisionError"),
    ):
        assert word in defects[name], (done.stdout, done.stderr)


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
        array = files.read(str(path))
        assert array.nbytes == stored and array.shape == tuple(shape)
    except UserError as error:
        assert str(path) in str(error)
    assert memory.host_memory() - before < 64 << 20


# opcodes of pickle, and what some of them need behind them
OPCODES = [b"cos\nsystem\n", b"X\x01\x00\x00\x00a", b"q\x00", b"h\x00", b"K\x05"]
OPCODES += [b"\x81", b"\x93", b"\x89"] + [bytes([code]) for code in b"(}])RtusQob02.ldea"]


@QUICK
@given(program=st.lists(st.sampled_from(OPCODES), max_size=25))
def test_no_pickle_runs_anything(tmp_path, program):
    path = tmp_path / "a.pt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/data.pkl", b"\x80\x02" + b"".join(program) + b".")
    with pytest.raises(UserError, match=re.escape(str(path))):
        weights.read(path)


def test_a_dead_tensorboard_thread_neither_blocks_the_run_nor_its_end(tmp_path):
    """As on a full disk: thousands of values later, and at exit, nothing waits for that thread."""
    code = f"""
from tensorboardX import SummaryWriter
from jaxvol.runtime import monitoring
board = SummaryWriter({str(tmp_path)!r}, max_queue=0)
monitoring.loosen(board)
def full(event):
    raise OSError(28, "No space left on device")
board.file_writer.event_writer._ev_writer.write_event = full
for step in range(4000):
    board.add_scalar("x", 1.0, step)
print("through")
"""
    done = python(code, limit=60)
    assert done.returncode == 0 and "through" in done.stdout, done.stderr
