"""One mesh: sizes, rows per process, placement by shape."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P
from ml_collections import ConfigDict

from jaxvol.training import sharding
from jaxvol.types import UserError


def mesh(data=-1, fsdp=1, space=1):
    return sharding.make_mesh(ConfigDict({"data": data, "fsdp": fsdp, "space": space}))


def test_mesh_takes_what_is_left_and_refuses_what_does_not_fit():
    assert dict(mesh(-1, 2, 2).shape) == {"data": 2, "fsdp": 2, "space": 2}
    assert set(mesh().axis_types) == {AxisType.Auto}
    for wrong in ((3, 1, 1), (-1, 3, 1), (1, 1, 1)):
        with pytest.raises(UserError, match="does not use 8 device"):
            mesh(*wrong)


def test_batches_and_depths_that_do_not_divide_are_refused():
    sharding.check(mesh(2, 2, 2), 4, 6, "batch_size")
    with pytest.raises(UserError, match="batch_size is 6.*multiple of 4"):
        sharding.check(mesh(2, 2, 2), 6, 6, "batch_size")
    with pytest.raises(UserError, match="depth 5"):
        sharding.check(mesh(2, 2, 2), 4, 5, "batch_size")


def test_volumes_lie_where_the_design_says():
    x = np.arange(4 * 6 * 3 * 3, dtype=np.float32).reshape(4, 6, 3, 3, 1)
    on_mesh = mesh(2, 2, 2)
    assert sharding.rows(on_mesh, 4) == slice(0, 4)
    put = sharding.put(on_mesh, {"x": x, "_mask": np.ones(4, np.float32)}, 4)
    assert {s.data.shape for s in put["x"].addressable_shards} == {(1, 3, 3, 3, 1)}
    assert put["_mask"].sharding.spec == P(("data", "fsdp"))
    np.testing.assert_array_equal(put["x"], x)


def test_large_leaves_split_on_the_longest_axis_that_divides():
    on_mesh = mesh(2, 4, 1)
    assert sharding.leaf_sharding(on_mesh, (3, 128, 64)).spec == P(None, "fsdp")
    assert sharding.leaf_sharding(on_mesh, (129, 64)).spec == P(None, "fsdp")
    assert sharding.leaf_sharding(on_mesh, (101, 77)).spec == P()  # nothing divides
    assert sharding.leaf_sharding(on_mesh, (8, 8)).spec == P()  # too small to be worth it
    tree = jax.eval_shape(lambda: {"w": jnp.zeros((128, 64)), "mu": (jnp.zeros((128, 64)),)})
    found = sharding.state_shardings(on_mesh, tree)
    assert found["w"] == found["mu"][0]
