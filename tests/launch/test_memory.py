"""A volume over several devices: less memory for each, halos exchanged, no field gathered."""

import dataclasses

import jax
import pytest
from ml_collections import ConfigDict

from jaxvol.config import base
from jaxvol.models import vnet
from jaxvol.training import sharding
from jaxvol.types import Field, Spec, UserError
from launch.benchmarks import memory

SPEC = Spec(
    fields={"input": Field(("x",)), "target": Field(("y",))}, shape=(32, 32, 32), spacing=(1.0,) * 3
)


def config(widths, layout):
    model = base.model("vnet")
    model.widths, model.layout = widths, layout
    return ConfigDict({"model": model, "precision": "f32"})


@pytest.mark.parametrize(
    "space, widths, layout, depth, fits",
    [
        (4, (16, 32, 64, 80), "residual", 32, True),
        (8, (16, 32, 64, 80), "residual", 32, False),
        (8, (16, 32, 64), "residual", 32, True),
        (4, (16, 32, 64, 80), "original", 32, False),
        (8, (16, 32, 64, 80), "residual", 128, True),
        (1, (16,) * 6, "residual", 8, True),
    ],
)
def test_vnet_is_not_spread_over_more_devices_than_its_coarsest_grid_has_planes(
    space, widths, layout, depth, fits
):
    spec = dataclasses.replace(SPEC, shape=(depth, 32, 32))
    mesh = sharding.make_mesh(
        ConfigDict({"data": 1, "fsdp": 1, "space": -1}), jax.devices()[:space]
    )
    with jax.set_mesh(mesh):
        if fits:
            assert vnet.make(config(widths, layout), spec)
        else:
            with pytest.raises(
                UserError, match="coarsest grid of model vnet has . planes.*at most . devices"
            ):
                vnet.make(config(widths, layout), spec)


def check(rows: list[dict], model: str, size: int, slack: float) -> None:
    """The limits of launch/benchmarks/memory.py times `slack`; the first row is of one device."""
    single, *split = rows
    for row in split:
        assert "error" not in row, row
        ratio = row["temporary"] * row["devices"] / single["temporary"]
        assert ratio <= memory.LIMITS[model] * slack, (model, row["devices"], ratio)
        assert row["gathered_fields"] == [] and row["largest_gather"] < size**3, row
    if model != "fno":  # convolutions: slices of the neighbours, not the volume
        assert split[-1]["collectives"]["collective-permute"][0] > 0


@pytest.mark.slow
@pytest.mark.parametrize("model", ["fno", "vit3d", "vnet"])
def test_memory_per_device_at_64(model):
    """What does not divide weighs more than at 128^3: ten per cent more is allowed."""
    check([memory.one(model, 64, n) for n in (1, 4)], model, 64, 1.1)


@pytest.mark.campaign
@pytest.mark.parametrize("model", ["fno", "vit3d", "vnet"])
def test_memory_per_device_at_128(model):
    check([memory.one(model, 128, n) for n in (1, 2, 4, 8)], model, 128, 1.0)
