"""One mesh with the axes data, fsdp, space; who holds what is decided here and nowhere else.

    data   the batch is split                      fsdp   the batch AND parameters, moments and EMA
    are split space  the depth axis of volumes [B, D, H, W, C] is split

All axes are of type Auto: XLA chooses the communication (jax.make_mesh would default to Explicit).
"""

from __future__ import annotations

import math

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxvol.types import Batch, PyTree, UserError

AXES = ("data", "fsdp", "space")
# elements: splitting less than this costs more in messages than it saves in memory
SMALLEST_SPLIT = 4096


def make_mesh(mesh_config, devices: list | None = None) -> Mesh:
    """The mesh of `config.mesh`; -1 takes the devices that the other axes leave.  Raises UserError
    if they do not fit.
    """
    devices = jax.devices() if devices is None else devices
    sizes = [mesh_config.data, mesh_config.fsdp, mesh_config.space]
    known = math.prod(s for s in sizes if s != -1)
    sizes = [len(devices) // known if s == -1 else s for s in sizes]
    if math.prod(sizes) != len(devices) or 0 in sizes:
        asked = ", ".join(
            f"{a}={s}"
            for a, s in zip(AXES, (mesh_config.data, mesh_config.fsdp, mesh_config.space))
        )
        raise UserError(
            f"config.mesh asks for {asked}, which does not use {len(devices)} device(s) exactly; "
            "set one axis to -1, or make the product of the three equal to the number of devices."
        )
    return Mesh(np.asarray(devices).reshape(sizes), AXES, axis_types=(AxisType.Auto,) * 3)


def one_device() -> Mesh:
    """The mesh of this process's first device."""
    return Mesh(
        np.asarray(jax.local_devices()[:1]).reshape(1, 1, 1), AXES, axis_types=(AxisType.Auto,) * 3
    )


def batch_sharding(mesh: Mesh, ndim: int) -> NamedSharding:
    """Examples over data and fsdp; the depth of volumes, [B, D, H, W, C], over space."""
    return NamedSharding(mesh, P(("data", "fsdp"), "space") if ndim == 5 else P(("data", "fsdp")))


def check(mesh: Mesh, batch_size: int, depth: int, what: str) -> None:
    """UserError unless a batch of this size and depth divides over the mesh."""
    parts = mesh.shape["data"] * mesh.shape["fsdp"]
    if batch_size % parts:
        raise UserError(
            f"{what} is {batch_size}, which {parts} devices (mesh data x fsdp) cannot share "
            "equally; "
            f"use a multiple of {parts}, or fewer devices."
        )
    if depth % mesh.shape["space"]:
        raise UserError(
            f"volumes have depth {depth}, which mesh.space={mesh.shape['space']} does not divide; "
            "choose mesh.space among its divisors or pad the volumes."
        )


def rows(mesh: Mesh, batch_size: int) -> slice:
    """The rows of a global batch that this process has to read."""
    held = batch_sharding(mesh, 1).addressable_devices_indices_map((batch_size,)).values()
    bounds = [s[0].indices(batch_size)[:2] for s in held]
    return slice(min(b[0] for b in bounds), max(b[1] for b in bounds))


def put(mesh: Mesh, batch: dict[str, np.ndarray], batch_size: int) -> Batch:
    """This process's rows -> global arrays on the mesh."""
    return {
        name: jax.make_array_from_process_local_data(
            batch_sharding(mesh, x.ndim), x, (batch_size, *x.shape[1:])
        )
        for name, x in batch.items()
    }


def leaf_sharding(mesh: Mesh, shape: tuple[int, ...]) -> NamedSharding:
    """Longest axis that fsdp divides; small leaves stay whole."""
    parts = mesh.shape["fsdp"]
    fits = [n if n % parts == 0 else 0 for n in shape]
    if parts == 1 or math.prod(shape) < SMALLEST_SPLIT or not any(fits):
        return NamedSharding(mesh, P())
    axis = int(np.argmax(fits))
    return NamedSharding(mesh, P(*[None] * axis, "fsdp"))


def state_shardings(mesh: Mesh, state: PyTree) -> PyTree:
    """One sharding per leaf, by shape alone, so that a parameter, its moments and its average lie
    together.
    """
    return jax.tree.map(lambda x: leaf_sharding(mesh, x.shape), state)


def replicated(mesh: Mesh) -> NamedSharding:
    """Every device holds all of it."""
    return NamedSharding(mesh, P())
