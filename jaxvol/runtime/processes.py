"""Several processes as one run, and one run per workdir: which they are, what they decide
together, how one ends alone.

The environment says it: JAX_COORDINATOR_ADDRESS with JAX_NUM_PROCESSES and JAX_PROCESS_ID
(launch/cluster/multihost.sh, launch/cluster/k8s.yaml), Slurm's srun, Open MPI's mpirun, or
config.distributed for all else.  With none of them the run is one process and nothing here acts.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from jax.experimental import multihost_utils

from jaxvol.runtime import peer_watch
from jaxvol.types import UserError, WorkdirLocked

CONNECT_S = 180  # for all processes to find one another
LEAVE_S = 30  # for what is still being written when one process is in trouble


class Group(NamedTuple):
    """The processes of a run, as one of them sees them."""

    coordinator: str  # HOST:PORT of process 0
    processes: int
    process: int  # 0 .. processes - 1
    # its number on this machine where it has to choose one device; None = it takes all it sees
    local: int | None
    source: str  # who said so


def find(environ: Mapping[str, str], settings) -> Group | None:
    """The group that `settings` (config.distributed) or the environment describes; None for a run
    of one process.

    Raises UserError for a description that is not complete or contradicts itself.
    """
    if settings.coordinator:
        group = Group(
            settings.coordinator, settings.processes, settings.process, None, "config.distributed"
        )
    elif "JAX_COORDINATOR_ADDRESS" in environ:
        missing = [name for name in ("JAX_NUM_PROCESSES", "JAX_PROCESS_ID") if name not in environ]
        if missing:
            raise UserError(
                f"JAX_COORDINATOR_ADDRESS is set without {' and '.join(missing)}; set all three, "
                "or none of them."
            )
        group = Group(
            environ["JAX_COORDINATOR_ADDRESS"],
            _whole(environ, "JAX_NUM_PROCESSES"),
            _whole(environ, "JAX_PROCESS_ID"),
            None,
            "JAX_COORDINATOR_ADDRESS",
        )
    elif {"SLURM_STEP_NODELIST", "SLURM_STEP_NUM_TASKS", "SLURM_PROCID", "SLURM_JOB_ID"} <= set(
        environ
    ):
        group = Group(
            f"{first_host(environ['SLURM_STEP_NODELIST'])}:{port(_whole(environ, 'SLURM_JOB_ID'))}",
            _whole(environ, "SLURM_STEP_NUM_TASKS"),
            _whole(environ, "SLURM_PROCID"),
            _share(environ, "SLURM_LOCALID", "SLURM_STEP_TASKS_PER_NODE"),
            "Slurm",
        )
    elif "OMPI_COMM_WORLD_SIZE" in environ:
        group = Group(
            _open_mpi(environ),
            _whole(environ, "OMPI_COMM_WORLD_SIZE"),
            _whole(environ, "OMPI_COMM_WORLD_RANK"),
            _share(environ, "OMPI_COMM_WORLD_LOCAL_RANK", "OMPI_COMM_WORLD_LOCAL_SIZE"),
            "Open MPI",
        )
    else:
        return None
    if group.processes == 1:
        return None
    if not 0 <= group.process < group.processes or not re.fullmatch(r"\S+:\d+", group.coordinator):
        raise UserError(
            f"{group.source} describes process {group.process} of {group.processes} with the "
            f"coordinator {group.coordinator!r}; expected a number from 0 to one less than their "
            "number, and HOST:PORT."
        )
    return group


def _whole(environ: Mapping[str, str], name: str) -> int:
    try:
        return int(environ[name])
    except (KeyError, ValueError):
        raise UserError(
            f"the environment variable {name} is {environ.get(name)!r}; expected a whole number."
        ) from None


def _share(environ: Mapping[str, str], local: str, per_node: str) -> int | None:
    """The number of this process on its machine, if it sees several GPUs that it has to share with
    the others there.
    """
    count = re.match(r"\d+", environ.get(per_node, "1"))
    visible = [gpu for gpu in environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if gpu.strip()]
    shares = count and int(count[0]) > 1 and len(visible) >= int(count[0])
    return _whole(environ, local) if shares else None


def first_host(nodes: str) -> str:
    """The first name in Slurm's list of nodes: a, "a,b", "a[3-5,9],b", "a[003-005]b"."""
    name, bracket, rest = re.match(r"([^,\[]*)(\[?)(.*)", nodes).groups()
    if not bracket:
        return name
    inside, _, after = rest.partition("]")
    return name + re.split(r"[-,]", inside)[0] + re.match(r"[^,\[]*", after)[0]


def port(job: int) -> int:
    """A port that two jobs on one machine seldom share."""
    return 61440 + job % 4096


def _open_mpi(environ: Mapping[str, str]) -> str:
    """HOST:PORT out of what mpirun (4: ORTE, 5: PRRTE) tells; UserError where it tells neither."""
    for name in (
        "OMPI_MCA_orte_hnp_uri",
        "PMIX_SERVER_URI41",
        "PMIX_SERVER_URI4",
        "PMIX_SERVER_URI3",
        "PMIX_SERVER_URI2",
    ):
        address = re.search(r"tcp4?://([^,:;]+)", environ[name]) if name in environ else None
        if address and (
            address[1] != "127.0.0.1"
            or environ.get("OMPI_COMM_WORLD_LOCAL_SIZE") == environ["OMPI_COMM_WORLD_SIZE"]
        ):
            job = re.search(r"\d+", environ[name])
            return f"{address[1]}:{port(int(job[0]) // 4096 if job else 0)}"
    raise UserError(
        "Open MPI started several processes, but does not say where process 0 runs; name it: "
        "mpirun -x JAX_COORDINATOR_ADDRESS=HOST:PORT ..., with JAX_NUM_PROCESSES and "
        "JAX_PROCESS_ID set in each process, or --config.distributed.coordinator=HOST:PORT."
    )


def start(settings) -> Group | None:
    """Join the group that the environment or `settings` (config.distributed) describes, before JAX
    touches a device.

    Raises UserError when the others cannot be reached.
    """
    group = find(os.environ, settings)
    if group is None or jax.distributed.is_initialized():
        return group
    try:
        jax.distributed.initialize(
            group.coordinator,
            group.processes,
            group.process,
            None if group.local is None else [group.local],
            cluster_detection_method="deactivate",
            initialization_timeout=CONNECT_S,
            heartbeat_timeout_seconds=settings.heartbeat_seconds,
            shutdown_timeout_seconds=LEAVE_S,
        )
    except Exception as error:  # RuntimeError, XlaRuntimeError, ValueError: whatever gRPC says
        raise UserError(
            f"process {group.process} of {group.processes} ({group.source}) could not join the "
            f"others at {group.coordinator} within {CONNECT_S} s "
            f"({str(error).splitlines()[0][:200]}). Is process 0 running there, is the port open "
            "and free, and is the number of processes right?"
        ) from error
    peer_watch.start(group.process, group.coordinator.rpartition(":")[0].strip("[]"), agree)
    return group


def several() -> bool:
    """Whether this run has more than one process."""
    return jax.process_count() > 1


def first() -> bool:
    """Whether this process writes the logs."""
    return jax.process_index() == 0


def agree(value: int) -> int:
    """The largest `value` that any process brought; all have to call it at the same place."""
    return int(np.max(multihost_utils.process_allgather(np.int32(value)))) if several() else value


def wait(name: str) -> None:
    """Go on when all processes are here."""
    if several():
        multihost_utils.sync_global_devices(name)


def once(action: Callable[[], object]) -> object:
    """The result of `action` in process 0, None in the others, which wait for it.

    What it raises there is raised there; the others raise the same kind of error, whose text points
    to process 0.
    """
    classes = (Exception, UserError, WorkdirLocked)
    failure, result = None, None
    if first():
        try:
            result = action()
        except Exception as error:  # raised below, when the others know
            failure = error
    number = agree(
        0
        if failure is None
        else 1 + max(i for i, c in enumerate(classes) if isinstance(failure, c))
    )
    if failure is not None:
        raise failure
    if number:
        raise classes[number - 1]("process 0 could not go on; its message says why.")
    return result


def lock(workdir: Path):
    """Hold the workdir for this run.  Raises WorkdirLocked if another run trains in it, UserError
    if it cannot be written.

    The first of several processes holds it for all of them.
    """
    held = once(lambda: _lock(workdir))
    return contextlib.nullcontext() if held is None else held


def _lock(workdir: Path):
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        handle = open(workdir / ".lock", "a+")
    except OSError as error:
        raise UserError(
            f"The workdir {workdir} cannot be written ({error}). Mend its permissions, or choose "
            "another --workdir."
        ) from error
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        handle.seek(0)
        raise WorkdirLocked(
            f"{workdir} is in use by another run ({handle.read().strip() or 'unknown process'}); "
            "wait for it, stop it, or choose another --workdir."
        ) from None
    # the lock holds on a full disk as well; the text is only for people
    with contextlib.suppress(OSError):
        handle.truncate(0)
        handle.write(f"pid {os.getpid()} since {time.strftime('%Y-%m-%d %H:%M:%S')}")
        handle.flush()
    return handle


def leave(status: int) -> None:
    """End this process now, without JAX's goodbye, which would wait for processes that may be stuck
    or gone.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    peer_watch.goodbye(status)
    os._exit(status)


def finish(action: Callable[[], object]) -> None:
    """Run `action`; of several processes for at most LEAVE_S, because it may wait for one that is
    gone.
    """
    if not several():
        action()
        return
    thread = threading.Thread(target=action, daemon=True)
    thread.start()
    thread.join(LEAVE_S)
