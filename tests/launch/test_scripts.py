"""The shell scripts, in a copy of the checkout whose path has a space, with a stub of Python."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests import ROOT

SCRIPTS = sorted([*ROOT.glob("launch/**/*.sh"), ROOT / ".ci" / "run"])
LOCKS = sorted(ROOT.glob("launch/environments/requirements-*.txt"))

# Stands for the system's Python and, copied by its own `-m venv`, for .venv/bin/python.
PYTHON = r"""#!/bin/bash
case "$*" in
  *'import sys, venv'*) exit "${STUB_OLD:-0}" ;;
  *'default_backend'*) echo "${STUB_BACKEND:-cpu}"; exit 0 ;;
  *'cpu_count'*) echo 2; exit 0 ;;
  *'import socket'*) echo 5000; exit 0 ;;
  '--version') echo 'Python 3.9.9'; exit 0 ;;
  '-m pip --version') exit 0 ;;
esac
echo "$PWD: $*" >>"$STUB_LOG"
case "$*" in
  '-m venv '*) mkdir -p .venv/bin && cp "$0" .venv/bin/python ;;
  '-m pip install'*) exit "${STUB_PIP:-0}" ;;
esac
"""
NVIDIA_SMI = '#!/bin/bash\necho "$STUB_DRIVER"\n'


class Checkout:
    """A copy of the checkout's scripts, with stubs on the PATH."""

    def __init__(self, folder: Path):
        self.root, self.bin, self.log = folder / "a b" / "jaxvol", folder / "bin", folder / "log"
        shutil.copytree(
            ROOT / "launch", self.root / "launch", ignore=shutil.ignore_patterns("__pycache__")
        )
        shutil.copytree(ROOT / ".ci", self.root / ".ci")
        for name in ("setup.cfg", "pyproject.toml"):
            shutil.copy(ROOT / name, self.root)
        self.bin.mkdir()
        self.stub("python3", PYTHON)
        self.stub("nvidia-smi", "#!/bin/bash\nexit 9\n")

    def stub(self, name: str, text: str) -> None:
        (self.bin / name).write_text(text)
        (self.bin / name).chmod(0o755)

    def run(self, script: str, *arguments: str, **env: str) -> tuple[int, list[str], str]:
        """(exit status, command lines that Python got, stderr) of a script, called from /."""
        self.log.write_text("")
        for other in ("python3.11", "python3.12", "python3.13", "python3.14", "python"):
            self.stub(other, "#!/bin/bash\nexit 1\n")  # hides the machine's own
        env = {
            "PATH": f"{self.bin}:/usr/bin:/bin",
            "HOME": str(self.root),
            "STUB_LOG": str(self.log),
            **env,
        }
        done = subprocess.run(
            ["bash", str(self.root / script), *arguments],
            cwd="/",
            env=env,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
        )
        lines = self.log.read_text().splitlines()
        commands = [line.removeprefix(f"{self.root}: ") for line in lines]
        return done.returncode, commands, done.stderr


@pytest.fixture
def checkout(tmp_path):
    if Path("/dev/nvidia0").exists():
        pytest.skip("the stubs describe a machine without a GPU, and this one has /dev/nvidia0")
    return Checkout(tmp_path)


def install(extras: str) -> str:
    return f"-m pip install --quiet --disable-pip-version-check --editable .[{extras}]"


def test_first_run_installs_later_runs_do_not_and_a_new_setup_cfg_does(checkout):
    main = "-m jaxvol.main --config=configs/fno.py:quick --workdir=a b"
    arguments = ("--config=configs/fno.py:quick", "--workdir=a b")
    status, commands, errors = checkout.run("launch/quickstart.sh", *arguments)
    assert status == 0 and commands == ["-m venv .venv", install("nbody"), main], errors
    assert checkout.run("launch/quickstart.sh", *arguments)[1] == [main]
    assert checkout.run("launch/quickstart.sh")[1] == ["-m jaxvol.main --config=configs/fno.py"]
    with (checkout.root / "setup.cfg").open("a") as file:
        file.write("\n# changed\n")
    assert checkout.run("launch/quickstart.sh", *arguments)[1] == [install("nbody"), main]


def test_tests_add_their_extras_and_pass_arguments_on(checkout):
    checkout.run("launch/quickstart.sh")
    pytest_run = "-m pytest -n 2 --dist loadfile --no-loadscope-reorder"
    assert checkout.run("launch/test.sh", "-k", "a or b")[1] == [
        install("test,nbody"),
        f"{pytest_run} -k a or b",
    ]
    assert checkout.run(".ci/run")[1] == [pytest_run]
    assert checkout.run("launch/quickstart.sh")[1] == ["-m jaxvol.main --config=configs/fno.py"]


def test_seeds_are_trained_one_after_another_and_compared(checkout):
    checkout.run("launch/quickstart.sh")
    arguments = ("configs/fno.py:quick", "0", "3", "--config.batch_size=1")
    status, commands, errors = checkout.run("launch/studies/seeds.sh", *arguments)
    main, runs = "-m jaxvol.main --config=configs/fno.py:quick", "runs/fno-quick-seed"
    assert status == 0 and commands == [
        f"{main} --config.seed=0 --workdir={runs}0 --config.batch_size=1",
        f"{main} --config.seed=3 --workdir={runs}3 --config.batch_size=1",
        f"{main} --mode=compare --config.compare.runs={runs}0,{runs}3 --workdir={runs}s",
    ], errors


def test_the_benchmark_trains_what_is_not_scored_yet(checkout):
    checkout.run("launch/quickstart.sh")
    done = checkout.root / "runs" / "benchmark-vnet-base-seed1" / "evaluation" / "metrics.json"
    done.parent.mkdir(parents=True)
    done.touch()
    status, commands, errors = checkout.run("launch/studies/benchmark.sh", "base", "1")
    runs = [f"runs/benchmark-{m}-base-seed1" for m in ("fno", "vnet", "vit3d", "pix2pixcc")]
    assert status == 0 and len(commands) == 4, errors
    assert [command.split("--workdir=")[1].split()[0] for command in commands] == [
        runs[0],
        *runs[2:],
        "runs/benchmark-base",
    ]
    assert f"--config.compare.runs={','.join(runs)}" in commands[-1]


def test_several_processes_get_the_same_command(checkout):
    checkout.run("launch/quickstart.sh")
    status, commands, errors = checkout.run("launch/cluster/multihost.sh", "3", "--config=a b.py")
    assert status == 0 and commands == ["-m jaxvol.main --config=a b.py"] * 3, errors
    status, _, errors = checkout.run("launch/cluster/multihost.sh", "two")
    assert status == 1 and "usage" in errors


def test_exit_status_is_that_of_the_job(checkout):
    checkout.run("launch/quickstart.sh")
    (checkout.root / ".venv" / "bin" / "python").write_text(
        PYTHON + "[[ $* == *jaxvol.main* ]] && exit 75; exit 0\n"
    )
    assert checkout.run("launch/quickstart.sh")[0] == 75


def test_an_interrupted_installation_and_a_broken_environment_are_made_anew(checkout):
    status, commands, errors = checkout.run("launch/quickstart.sh", STUB_PIP="1")
    assert (
        status == 1 and "installation failed" in errors and "jaxvol.main" not in " ".join(commands)
    )
    (checkout.root / ".venv" / "left-over").touch()
    status, commands, errors = checkout.run("launch/quickstart.sh")
    assert status == 0 and commands[0] == "-m venv .venv" and "unfinished or broken" in errors
    assert not (checkout.root / ".venv" / "left-over").exists()
    (checkout.root / ".venv" / "bin" / "python").unlink()  # its base Python was removed, say
    assert checkout.run("launch/quickstart.sh")[1][0] == "-m venv .venv"


def test_a_moved_checkout_is_installed_again(checkout, tmp_path):
    checkout.run("launch/quickstart.sh")
    checkout.root = checkout.root.rename(tmp_path / "moved")
    assert install("nbody") in checkout.run("launch/quickstart.sh")[1]


def test_without_a_suitable_python_the_message_says_what_to_do(checkout):
    status, commands, errors = checkout.run("launch/quickstart.sh", STUB_OLD="1")
    assert status == 1 and commands == []
    for word in ("Python 3.11 or newer", "Python 3.9.9", "PYTHON="):
        assert word in errors
    status, _, errors = checkout.run("launch/quickstart.sh", PYTHON="/no/such/python")
    assert status == 1 and "PYTHON=/no/such/python is not" in errors


@pytest.mark.parametrize(
    "driver, extra", [("580.65.06", "cuda13"), ("610.10", "cuda13"), ("535.183.01", "cuda12")]
)
def test_gpu_build_follows_the_driver(checkout, driver, extra):
    checkout.stub("nvidia-smi", NVIDIA_SMI)
    status, commands, errors = checkout.run(
        "launch/quickstart.sh", STUB_DRIVER=driver, STUB_BACKEND="gpu"
    )
    assert status == 0 and commands[1] == install(f"nbody,{extra}") and "CANNOT USE" not in errors


def test_a_gpu_that_jax_cannot_use_is_loud_every_time_unless_the_cpu_was_asked_for(checkout):
    checkout.stub("nvidia-smi", NVIDIA_SMI)
    for _ in range(2):
        status, commands, errors = checkout.run(
            "launch/quickstart.sh", STUB_DRIVER="580.65.06", STUB_BACKEND="cpu"
        )
        assert (
            status == 0
            and "JAX CANNOT USE IT" in errors
            and commands[-1].startswith("-m jaxvol.main")
        )
    _, commands, errors = checkout.run(
        "launch/quickstart.sh", STUB_DRIVER="580.65.06", JAX_PLATFORMS="cpu"
    )
    assert "CANNOT USE" not in errors
    broken = "NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver."
    shutil.rmtree(checkout.root / ".venv")
    assert install("nbody") in checkout.run("launch/quickstart.sh", STUB_DRIVER=broken)[1]


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_scripts_are_strict_and_clean(script):
    text = script.read_text()
    assert text.startswith("#!/usr/bin/env bash\n") and "\nset -euo pipefail\n" in text
    assert os.access(script, os.X_OK)
    assert subprocess.run(["bash", "-n", str(script)]).returncode == 0
    if shutil.which("shellcheck"):
        done = subprocess.run(["shellcheck", str(script)], capture_output=True, text=True)
        assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("lock", LOCKS, ids=lambda path: path.name)
def test_lock_files_hold_exact_versions_from_the_index(lock):
    lines = [line for line in lock.read_text().splitlines() if not line.startswith("#")]
    assert all(re.fullmatch(r"[A-Za-z0-9._-]+==[\w.!+]+", line) for line in lines), lines
    names = {re.sub(r"[-_.]+", "-", line.partition("==")[0]).lower() for line in lines}
    section = (
        (ROOT / "setup.cfg").read_text().partition("install_requires =\n")[2].partition("\n\n")[0]
    )
    required = {
        re.sub(r"[-_.]+", "-", line.strip().partition(">=")[0]).lower()
        for line in section.splitlines()
    }
    assert len(required) > 10 and required <= names, (
        f"{required - names} missing: run launch/environments/lock.sh"
    )


def test_there_is_a_lock_file_for_every_python_the_tests_ran_with():
    assert {lock.name for lock in LOCKS} >= {
        f"requirements-3.{minor}.txt" for minor in (11, 12, 13)
    }
