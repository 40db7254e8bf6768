"""Who the processes of a run are, by every environment that tells; and the files that start them,
parsed and linted.
"""

import os
import re
import subprocess

import pytest
import yaml

from jaxvol.config import base
from jaxvol.runtime import processes
from jaxvol.types import UserError
from tests import ROOT

CLUSTER = ROOT / "launch" / "cluster"
SLURM = {
    "SLURM_JOB_ID": "4097",
    "SLURM_STEP_NODELIST": "gpu[007-009,12],other",
    "SLURM_STEP_NUM_TASKS": "8",
    "SLURM_PROCID": "5",
    "SLURM_LOCALID": "1",
    "SLURM_STEP_TASKS_PER_NODE": "2(x4)",
}
MPI = {
    "OMPI_COMM_WORLD_SIZE": "4",
    "OMPI_COMM_WORLD_RANK": "2",
    "OMPI_COMM_WORLD_LOCAL_RANK": "0",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "2",
}


def settings(**fields):
    chosen = base.common().distributed
    chosen.update(fields)
    return chosen


@pytest.mark.parametrize(
    "environ, expected",
    [
        ({}, None),
        # sbatch's own script is one process
        ({"SLURM_JOB_ID": "1", "SLURM_NTASKS": "8"}, None),
        ({**SLURM, "SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0"}, None),
        (SLURM, ("gpu007:61441", 8, 5, None)),
        # two processes share what they both see
        ({**SLURM, "CUDA_VISIBLE_DEVICES": "0,1"}, ("gpu007:61441", 8, 5, 1)),
        ({**SLURM, "CUDA_VISIBLE_DEVICES": "0"}, ("gpu007:61441", 8, 5, None)),  # each sees its own
        (
            {**MPI, "OMPI_MCA_orte_hnp_uri": "1531576320.0;tcp://10.96.0.1,10.148.0.1:34911"},
            (f"10.96.0.1:{61440 + 1531576320 // 4096 % 4096}", 4, 2, None),
        ),
        (
            {**MPI, "PMIX_SERVER_URI41": "prterun-host-7@0.0;tcp4://10.0.0.3:5000"},
            ("10.0.0.3:61440", 4, 2, None),
        ),
        (
            {
                "JAX_COORDINATOR_ADDRESS": "a.b:1234",
                "JAX_NUM_PROCESSES": "2",
                "JAX_PROCESS_ID": "1",
            },
            ("a.b:1234", 2, 1, None),
        ),
    ],
)
def test_the_environment_says_who_we_are(environ, expected):
    group = processes.find(environ, settings())
    assert (group and tuple(group)[:4]) == expected


def test_flags_win_over_the_environment():
    group = processes.find(SLURM, settings(coordinator="x:1", processes=3, process=2))
    assert tuple(group)[:3] == ("x:1", 3, 2)


@pytest.mark.parametrize(
    "nodes, host",
    [("a", "a"), ("a,b", "a"), ("n[3-5,9],b", "n3"), ("n[003-005]b,c", "n003b"), ("n[7]", "n7")],
)
def test_the_first_of_slurms_nodes(nodes, host):
    assert processes.first_host(nodes) == host


@pytest.mark.parametrize(
    "environ, fields, message",
    [
        ({"JAX_COORDINATOR_ADDRESS": "a:1"}, {}, "without JAX_NUM_PROCESSES and JAX_PROCESS_ID"),
        (
            {"JAX_COORDINATOR_ADDRESS": "a:1", "JAX_NUM_PROCESSES": "two", "JAX_PROCESS_ID": "0"},
            {},
            "JAX_NUM_PROCESSES is 'two'",
        ),
        ({**SLURM, "SLURM_PROCID": "8"}, {}, "process 8 of 8"),
        ({}, {"coordinator": "host", "processes": 2, "process": 0}, "HOST:PORT"),
        (MPI, {}, "does not say where process 0 runs"),
        (
            {**MPI, "PMIX_SERVER_URI41": "prterun@0.0;tcp4://127.0.0.1:5000"},
            {},
            "does not say where process 0 runs",
        ),
    ],
)
def test_a_description_that_does_not_fit_is_refused(environ, fields, message):
    with pytest.raises(UserError, match=message):
        processes.find(environ, settings(**fields))


def test_alone_everything_is_agreed():
    assert (
        processes.agree(7) == 7
        and processes.once(lambda: "x") == "x"
        and processes.first()
        and not processes.several()
    )
    with pytest.raises(UserError, match="mine"):
        processes.once(lambda: (_ for _ in ()).throw(UserError("mine")))


def slurm(tmp_path, status, **env):
    """launch/cluster/slurm.sh with an srun that ends with `status`, and a scontrol that writes down
    what it is asked.
    """
    for name, text in (
        ("srun", f'echo "srun $*" >>{tmp_path}/log; exit {status}'),
        ("scontrol", f'echo "scontrol $*" >>{tmp_path}/log'),
        ("python", "true"),
    ):
        (tmp_path / name).write_text(f"#!/bin/bash\n{text}\n")
        (tmp_path / name).chmod(0o755)
    env = {
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
        "SLURM_SUBMIT_DIR": str(ROOT),
        "SLURM_JOB_ID": "17",
        "PYTHON": str(tmp_path / "python"),
        **env,
    }
    done = subprocess.run(
        ["bash", str(CLUSTER / "slurm.sh"), "--config=a b.py"],
        env=env,
        capture_output=True,
        text=True,
        timeout=60,
    )
    return (
        done.returncode,
        (tmp_path / "log").read_text() if (tmp_path / "log").exists() else "",
        done.stderr,
    )


@pytest.mark.parametrize(
    "status, requeued",
    [(75, True), (138, True), (143, True), (0, False), (1, False), (2, False), (3, False)],
)
def test_slurm_requeues_what_is_unfinished_and_nothing_else(tmp_path, status, requeued):
    code, log, said = slurm(tmp_path, status)
    assert "-m jaxvol.main --config=a b.py" in log and ("scontrol requeue 17" in log) == requeued, (
        said
    )
    assert code == (0 if requeued else status)


def test_slurm_does_not_go_round_for_ever_and_says_what_is_missing(tmp_path):
    code, log, said = slurm(tmp_path, 75, SLURM_RESTART_COUNT="100")
    assert code == 75 and "requeue" not in log and "submit it again" in said
    code, _, said = slurm(tmp_path, 0, PYTHON="/nowhere/python")
    assert code == 1 and "install.sh" in said


def test_slurm_warns_before_the_end_and_asks_for_the_queue():
    options = re.findall(r"^#SBATCH (--\S+)", (CLUSTER / "slurm.sh").read_text(), re.M)
    assert (
        "--requeue" in options
        and "--signal=USR1@300" in options
        and "--open-mode=append" in options
    )


def test_kubernetes_job_and_service_fit_together():
    service, job = yaml.safe_load_all((CLUSTER / "k8s.yaml").read_text())
    assert (service["kind"], service["spec"]["clusterIP"], job["kind"], job["apiVersion"]) == (
        "Service",
        "None",
        "Job",
        "batch/v1",
    )
    spec, pod = job["spec"], job["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    env = {entry["name"]: entry for entry in container["env"]}
    assert spec["completionMode"] == "Indexed" and pod["restartPolicy"] == "Never"
    assert spec["completions"] == spec["parallelism"] == int(env["JAX_NUM_PROCESSES"]["value"])
    port = service["spec"]["ports"][0]["port"]
    assert (
        env["JAX_COORDINATOR_ADDRESS"]["value"]
        == f"{job['metadata']['name']}-0.{pod['subdomain']}:{port}"
    )
    assert (
        pod["subdomain"] == service["metadata"]["name"]
        and "completion-index" in env["JAX_PROCESS_ID"]["valueFrom"]["fieldRef"]["fieldPath"]
    )
    assert service["spec"]["selector"] == spec["template"]["metadata"]["labels"]
    failing = [rule for rule in spec["podFailurePolicy"]["rules"] if rule["action"] == "FailJob"]
    assert (
        failing[0]["onExitCodes"]["containerName"] == container["name"]
        and 75 not in failing[0]["onExitCodes"]["values"]
    )
    assert {m["name"] for m in container["volumeMounts"]} == {v["name"] for v in pod["volumes"]}
    environ = {name: entry["value"] if "value" in entry else "0" for name, entry in env.items()}
    assert processes.find(environ, settings()).processes == spec["completions"]


def instructions(text: str) -> list[tuple[str, str]]:
    """(instruction, argument) of a Dockerfile, continuation lines joined, comments left out."""
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    joined = re.sub(r"\\\n\s*", " ", "\n".join(lines))
    return [tuple(line.split(None, 1)) for line in joined.splitlines() if line.strip()]


def test_dockerfile_copies_what_exists_installs_the_lock_file_and_runs_as_nobody_special():
    lines = instructions((CLUSTER / "Dockerfile").read_text())
    known = {"FROM", "ARG", "WORKDIR", "COPY", "RUN", "USER", "ENV", "VOLUME", "ENTRYPOINT"}
    assert {name for name, _ in lines} <= known and lines[0][0] == "FROM" and ":" in lines[0][1]
    for name, argument in lines:
        if name == "COPY":
            assert all((ROOT / source).exists() for source in argument.split()[:-1]), argument
        if name == "RUN":
            assert subprocess.run(["bash", "-n"], input=argument, text=True).returncode == 0
            assert "pip install" not in argument or "--no-cache-dir" in argument
    assert (
        any("-r launch/environments/requirements-3.12.txt" in a for n, a in lines if n == "RUN")
        and "3.12" in lines[0][1]
    )
    assert ("USER", "jaxvol") in lines and lines[-1] == (
        "ENTRYPOINT",
        '["python", "-m", "jaxvol.main"]',
    )


def test_apptainer_definition_has_its_sections_and_copies_what_exists():
    text = (CLUSTER / "apptainer.def").read_text()
    head, *rest = re.split(r"^%(\w+)\n", text, flags=re.M)
    sections = dict(zip(rest[::2], rest[1::2]))
    assert re.search(r"^Bootstrap: docker\nFrom: python:3\.12\S*$", head, re.M)
    assert set(sections) == {"arguments", "files", "post", "environment", "runscript", "test"}
    for line in sections["files"].strip().splitlines():
        source, target = line.split()
        assert (ROOT / source).exists() and target.startswith("/opt/jaxvol")
    for name in ("post", "environment", "runscript", "test"):
        assert subprocess.run(["bash", "-n"], input=sections[name], text=True).returncode == 0, name
    assert (
        "-r launch/environments/requirements-3.12.txt" in sections["post"]
        and 'exec python -m jaxvol.main "$@"' in sections["runscript"]
    )
