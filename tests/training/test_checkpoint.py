"""Checkpoints: every flipped bit is noticed, the newest sound step is found, names resolve, another
mesh can read them.
"""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from jaxvol.training import checkpoint, checksums, lookup, sharding, transfer
from jaxvol.types import TrainState, UserError


def state(step: int) -> TrainState:
    net = {
        "w": jax.random.normal(jax.random.key(step), (64, 128)),
        "n": jnp.arange(5),
        "flag": jnp.array([True, False]),
        "half": jnp.full((3,), 1.5, jnp.bfloat16),
    }
    params = {"net": net}
    extra = {"stats": {"net": {}}, "monitor": {"value": jnp.float32(1), "count": jnp.int32(0)}}
    return TrainState(
        jnp.int32(step),
        params,
        extra,
        {"net": (net["w"] * 2, (jnp.int32(3),))},
        {"ema": {"params": params, "stats": {"net": {}}}},
    )


def fill(workdir, steps, best, newest=2):
    store = checkpoint.open_store(workdir, newest)
    for step in steps:
        meta = {
            "progress": {"best_step": best if best in steps and step >= best else None},
            "phase": 0,
        }
        assert checkpoint.save(store, state(step), meta, [best] if step >= best else [])
        store.manager.wait_until_finished()
    return store


def template(mesh=None):
    shapes = jax.eval_shape(lambda: state(0))
    mesh = mesh or sharding.make_mesh(
        ConfigDict({"data": 1, "fsdp": 1, "space": 1}), jax.devices()[:1]
    )
    return jax.tree.map(
        lambda s, d: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=d),
        checkpoint.as_dict(shapes),
        sharding.state_shardings(mesh, checkpoint.as_dict(shapes)),
    )


def same(tree, step):
    jax.tree.map(np.testing.assert_array_equal, tree, checkpoint.as_dict(state(step)))


def test_keeps_newest_and_best_and_resolves_names(tmp_path):
    store = fill(tmp_path, [10, 20, 30, 40, 50], best=20)
    assert sorted(store.manager.all_steps()) == [20, 40, 50]
    assert lookup.resolve(store, "best")[0] == 20 and lookup.resolve(store, "final")[0] == 50
    with pytest.raises(UserError, match=r"'30' is not in .*\[20, 40, 50\]"):
        lookup.resolve(store, "30")
    params, stats, meta = lookup.weights(store, "40", template(), "ema")
    np.testing.assert_array_equal(params["net"]["w"], state(40).params["net"]["w"])
    assert meta["step"] == 40


def test_round_trip_is_exact_and_another_mesh_reads_it(tmp_path):
    store = fill(tmp_path, [3], best=3)
    mesh = sharding.make_mesh(ConfigDict({"data": 2, "fsdp": 4, "space": 1}))
    tree, meta = checkpoint.restore_newest(store, lambda meta: template(mesh))
    same(tree, 3)
    assert (
        len(tree["params"]["net"]["w"].sharding.device_set) == 8
        and not tree["params"]["net"]["w"].is_fully_replicated
    )
    # whatever the sharding
    assert checksums.checksums(tree) == checksums.checksums(checkpoint.as_dict(state(3)))


def test_checksum_sees_every_single_bit():
    x = np.random.default_rng(0).normal(size=200).astype(np.float32)
    reference = checksums.checksums({"x": jnp.asarray(x)})
    bits = x.view(np.uint32)
    for element in range(0, 200, 13):
        for bit in range(0, 32, 5):
            bits[element] ^= np.uint32(1 << bit)
            assert checksums.checksums({"x": jnp.asarray(x)}) != reference
            bits[element] ^= np.uint32(1 << bit)


def largest_file(folder):
    return max(
        (f for f in folder.rglob("*") if f.is_file() and "state" in f.parts),
        key=lambda f: f.stat().st_size,
    )


@pytest.mark.parametrize("damage", ["flip", "truncate", "metadata", "meta"])
def test_damage_is_noticed_and_the_step_before_is_used(tmp_path, damage):
    store = fill(tmp_path, [10, 20], best=10)
    folder = tmp_path / "checkpoints" / "20"
    if damage == "flip":
        file = largest_file(folder)
        data = bytearray(file.read_bytes())
        data[len(data) // 2] ^= 4
        file.write_bytes(data)
    elif damage == "truncate":
        file = largest_file(folder)
        file.write_bytes(file.read_bytes()[:100])
    elif damage == "metadata":
        (folder / "state" / "_METADATA").unlink()
    else:
        file = next(
            f for f in (folder / "meta").iterdir() if f.is_file() and b"best_step" in f.read_bytes()
        )
        content = json.loads(file.read_text())
        content["progress"]["best_step"] = 999
        file.write_text(json.dumps(content))
    tree, meta = checkpoint.restore_newest(store, lambda meta: template())
    same(tree, 10)
    assert (
        not (tmp_path / "checkpoints" / "20").exists()
        and len(list((tmp_path / "corrupt").iterdir())) == 1
    )
    # the number is free again
    assert checkpoint.save(store, state(20), {"progress": {"best_step": 10}}, [10])
    store.manager.wait_until_finished()


def test_no_sound_step_is_an_error_and_none_is_a_fresh_start(tmp_path):
    store = fill(tmp_path, [10], best=10)
    largest_file(tmp_path / "checkpoints" / "10").write_bytes(b"")
    with pytest.raises(UserError, match="None of the checkpoints .10.*resume=fresh"):
        checkpoint.restore_newest(store, lambda meta: template())
    assert (
        checkpoint.restore_newest(checkpoint.open_store(tmp_path / "new"), lambda meta: template())
        is None
    )


def weights_of_run(*groups, value=1.0, columns=3):
    return {
        "params": {g: {"kernel": jnp.full((2, columns), value)} for g in groups},
        "stats": {groups[0]: {"mean": jnp.full(3, value)}},
    }


def test_groups_of_another_name_are_transferred():
    """A generator starts from a regression run, and the other way round; everything else stays as
    it is.
    """
    target, given = weights_of_run("gen", "disc", value=1.0), weights_of_run("net", value=2.0)
    pair = transfer.transfer(target, given, "run", (("gen", "net"),))
    assert np.all(pair["params"]["gen"]["kernel"] == 2)
    assert np.all(pair["stats"]["gen"]["mean"] == 2)
    assert np.all(pair["params"]["disc"]["kernel"] == 1)
    back = transfer.transfer(given, target, "run", (("net", "gen"),))
    assert np.all(back["params"]["net"]["kernel"] == 1)
    assert np.all(back["stats"]["net"]["mean"] == 1)
    same = transfer.transfer(target, weights_of_run("gen", value=3.0), "run")
    assert np.all(same["params"]["gen"]["kernel"] == 3)
    assert np.all(same["params"]["disc"]["kernel"] == 1)
    for pairs in ((("gen", "disc"),), (("net", "net"),)):
        with pytest.raises(UserError, match="this run has disc, gen and run has net"):
            transfer.transfer(target, given, "run", pairs)
    with pytest.raises(UserError, match="none of which is in disc, gen"):
        transfer.transfer(target, given, "run")


def test_a_transfer_never_takes_half_in_silence():
    target, wider = weights_of_run("net"), weights_of_run("net", value=2.0, columns=4)
    with pytest.raises(UserError, match=r"params/net/kernel has \[2, 4\], expected \[2, 3\]"):
        transfer.transfer(target, wider, "run")
    pair = transfer.transfer(target, wider, "run", partial=True)
    assert np.all(pair["params"]["net"]["kernel"] == 1)
    assert np.all(pair["stats"]["net"]["mean"] == 2)


def test_a_renamed_folder_is_not_taken_for_the_step_it_is_called(tmp_path):
    store = fill(tmp_path, [10, 20], best=10)
    store.manager.close()
    (tmp_path / "checkpoints" / "20").rename(tmp_path / "checkpoints" / "99")
    (tmp_path / "checkpoints" / "²").mkdir()
    assert checkpoint.steps(tmp_path) == [10, 99]
    store = checkpoint.open_store(tmp_path)
    tree, meta = checkpoint.restore_newest(store, lambda meta: template())
    assert meta["step"] == 10
    same(tree, 10)
