"""Batches are a function of (seed, step): for any number of workers, any slice of rows, across
faults and restarts.
"""

import gc
import itertools
import threading
import time

import numpy as np
import pytest
from ml_collections import ConfigDict

from jaxvol.data import pipeline, reading
from jaxvol.data.augment import augment
from jaxvol.data.source import Source
from jaxvol.ops import rotations
from jaxvol.types import Field, Spec, UserError

ALL = slice(None)
SHAPE = (4, 4, 4)


@pytest.fixture(autouse=True)
def quick_backoff(monkeypatch):
    monkeypatch.setattr(reading, "BACKOFF_S", (0.001, 0.001))


def make_config(batch_size=4, precision="f32", **data):
    defaults = dict(
        num_workers=0,
        on_error="stop",
        max_skips=2,
        augment=(),
        fit_examples=64,
        input_normaliser=(),
        target_normaliser=(),
    )
    return ConfigDict(
        {"seed": 3, "batch_size": batch_size, "precision": precision, "data": defaults | data}
    )


def make_spec(
    channels=1, shape=SHAPE, kind="scalar", periodic=(True, True, True), spacing=(1.0, 1.0, 1.0)
):
    fields = {"input": Field(tuple("abcdef"[:channels]), kind), "target": Field(("t",))}
    return Spec(fields, shape, spacing, periodic=periodic)


def volume(index, split="train", channels=1, shape=SHAPE):
    """Different for every example; voxel [0, 0, 0] tells which one it is."""
    x = (
        np.random.default_rng((index, len(split)))
        .normal(size=(*shape, channels))
        .astype(np.float32)
    )
    x[0, 0, 0] = index
    return x


def make_source(read=None, sizes=None, spec=None):
    def plain(split, index, rng):
        x = volume(index, split)
        return {"input": x, "target": x**2 + 1}

    sizes = sizes or {"train": 7, "val": 5, "test": 0}
    return Source(
        spec or make_spec(),
        sizes,
        read or plain,
        lambda split: [f"{split}-{i}.h5" for i in range(sizes[split])],
        "h",
    )


def failing(bad, times=10**9, error=OSError):
    """A source whose examples `bad` (split, index) fail the first `times` times, and the list of
    its reads.
    """
    reads = []

    def read(split, index, rng):
        reads.append((split, index, None if rng is None else rng.random()))
        if (split, index) in bad and sum(r[:2] == (split, index) for r in reads) <= times:
            raise error("no such stripe")
        return {"input": volume(index, split), "target": volume(index, split)}

    return make_source(read), reads


def which(batch):
    return batch["input"][:, 0, 0, 0, 0].astype(int).tolist()


def assert_same(a, b):
    assert a.keys() == b.keys()
    for name in a:
        np.testing.assert_array_equal(a[name], b[name])
        assert a[name].dtype == b[name].dtype


def random_crops(split, index, rng):
    x = volume(index, split, shape=(9, 9, 9))
    corner = (0, 0, 0) if rng is None else rng.integers(6, size=3)
    crop = x[tuple(slice(c, c + 4) for c in corner)]
    return {"input": crop, "target": np.sin(crop)}


def test_same_batches_for_any_workers_rows_and_restart():
    options = dict(
        augment=("cube", "shift"),
        input_normaliser=(("standardise", {}),),
        target_normaliser=(("standardise", {}),),
    )
    data = [
        pipeline.dataset(make_source(random_crops), make_config(num_workers=n, **options))
        for n in (0, 1, 4)
    ]
    streams = [list(d.stream(0, 12, ALL)) for d in data]
    for step, batch in enumerate(streams[0]):
        for d, stream in zip(data, streams):
            assert_same(batch, stream[step])
            # pure: same again, in any order
            assert_same(batch, d.batch(step, ALL))
        halves = [data[0].batch(step, slice(0, 1)), data[0].batch(step, slice(1, 4))]
        assert_same(batch, {name: np.concatenate([h[name] for h in halves]) for name in batch})
    for resumed, batch in zip(data[2].stream(8, 12, slice(1, 3)), streams[0][8:], strict=True):
        assert_same(resumed, {name: leaf[1:3] for name, leaf in batch.items()})
    # other crops and symmetries later
    assert not np.array_equal(streams[0][0]["input"], streams[0][7]["input"])
    evaluated = [list(d.batches("val", 2, ALL, 0)) for d in data]
    for other in evaluated[1:]:
        for a, b in zip(evaluated[0], other, strict=True):
            assert_same(a, b)
    assert data[0].spec == data[2].spec and streams[0][0]["input"].flags.c_contiguous


def test_every_epoch_sees_every_example_once_and_batches_are_full():
    d = pipeline.dataset(make_source(), make_config())
    # 56 examples = 8 epochs of 7
    run = sum((which(b) for b in d.stream(0, 14, ALL)), [])
    epochs = [tuple(run[i : i + 7]) for i in range(0, 56, 7)]
    assert all(sorted(epoch) == list(range(7)) for epoch in epochs)
    assert len(set(epochs)) == 8
    big = pipeline.dataset(make_source(), make_config(batch_size=17)).batch(0, ALL)
    # the order does not depend on the batch size
    assert which(big) == run[:17]


def test_evaluation_runs_in_order_and_masks_the_padding():
    d = pipeline.dataset(make_source(), make_config(augment=("cube", "shift"), num_workers=1))
    batches = list(d.batches("val", 2, ALL, 0))
    assert [which(b) for b in batches] == [[0, 1], [2, 3], [4, 0]]
    assert [b["_mask"].tolist() for b in batches] == [[1, 1], [1, 1], [1, 0]]
    assert [b["_index"].tolist() for b in batches] == [[0, 1], [2, 3], [4, 0]]
    assert batches[0]["_mask"].dtype == np.float32 and batches[0]["_index"].dtype == np.int32
    # neither augmented nor shuffled
    np.testing.assert_array_equal(batches[1]["input"][1], volume(3, "val"))
    assert [which(b) for b in d.batches("val", 2, slice(1, 2), 0)] == [[1], [3], [0]]
    limited = list(d.batches("val", 2, ALL, 3))
    assert [b["_mask"].tolist() for b in limited] == [[1, 1], [1, 0]]
    for split, message in (("test", "split 'test' is empty"), ("validation", "train, val, test")):
        with pytest.raises(UserError, match=message):
            d.batches(split, 2, ALL, 0)


@pytest.mark.parametrize("kind", [OSError, SystemError])
def test_reads_are_retried_with_the_same_draws(kind):
    source, reads = failing({("train", 2)}, times=2, error=kind)
    d = pipeline.dataset(source, make_config(batch_size=7))
    assert sorted(which(d.batch(0, ALL))) == list(range(7)) and d.skipped() == []
    draws = [r[2] for r in reads if r[1] == 2]
    assert len(draws) == 3 and len(set(draws)) == 1
    reads.clear()
    list(d.batches("val", 5, ALL, 0))
    assert [r[2] for r in reads] == [None] * 5


@pytest.mark.parametrize("workers", [0, 2])
def test_stop_policy_names_the_example_in_the_consumer(workers):
    source, reads = failing({("train", 2)})
    d = pipeline.dataset(source, make_config(num_workers=workers))
    with pytest.raises(
        UserError, match=r"train example 2 \(train-2.h5\) after 3 tries: OSError: no such stripe"
    ):
        list(d.stream(0, 4, ALL))
    # threads may be in the next epoch already
    assert workers or sum(r[1] == 2 for r in reads) == 3
    # what is no read error surfaces as it is
    with pytest.raises(TypeError, match="a bug"):
        list(
            pipeline.dataset(
                failing({("train", 0)}, error=lambda m: TypeError("a bug"))[0], make_config()
            ).stream(0, 2, ALL)
        )


def test_skip_policy_takes_the_next_example_counts_and_caps():
    source, _ = failing({("train", 2), ("val", 4)})
    clean = pipeline.dataset(make_source(), make_config(batch_size=7))
    d = pipeline.dataset(source, make_config(batch_size=7, on_error="skip", num_workers=2))
    for step, batch in enumerate(d.stream(0, 4, ALL)):
        assert which(batch) == [3 if i == 2 else i for i in which(clean.batch(step, ALL))]
    last = list(d.batches("val", 3, ALL, 0))[-1]
    # a stand-in is not scored
    assert which(last) == [3, 0, 0] and last["_mask"].tolist() == [1, 0, 0]
    assert d.skipped() == [
        "train example 2 (train-2.h5): OSError: no such stripe",
        "val example 4 (val-4.h5): OSError: no such stripe",
    ]
    source, _ = failing({("train", i) for i in range(3)})
    with pytest.raises(UserError, match="3 examples could not be read, data.max_skips allows 2"):
        pipeline.dataset(source, make_config(batch_size=7, on_error="skip")).batch(0, ALL)
    source, _ = failing({("train", i) for i in range(7)})
    with pytest.raises(UserError, match="no example of the split 'train'"):
        pipeline.dataset(source, make_config(batch_size=7, on_error="skip", max_skips=99)).batch(
            0, ALL
        )


@pytest.mark.parametrize(
    "leaves, message",
    [
        (
            {"input": volume(0)},
            r"train-\d.h5\): leaves \['input'\]; expected \['input', 'target'\]",
        ),
        (
            {"input": volume(0)[..., 0], "target": volume(0)},
            r"input has shape \(4, 4, 4\); expected four axes",
        ),
        (
            {"input": volume(0, channels=2), "target": volume(0)},
            "input has 2 channels .*; expected 1",
        ),
        (
            {"input": volume(0), "target": volume(0)[:3]},
            r"target has the volume \(3, 4, 4\); expected \(4, 4, 4\)",
        ),
        (
            {"input": volume(0), "target": np.where(volume(0) > 1, np.nan, volume(0))},
            "target has .* non-finite",
        ),
        (
            {"input": volume(0), "target": volume(0), "mask": volume(0)},
            "mask has values other than 0 and 1",
        ),
        ({"input": volume(0), "target": volume(0).astype(object)}, "target has the type object"),
    ],
)
def test_bad_examples_give_one_clear_error_without_retry(leaves, message):
    reads = []
    source = make_source(lambda split, index, rng: reads.append(index) or leaves)
    with pytest.raises(UserError, match=message):
        pipeline.dataset(source, make_config(on_error="skip")).batch(0, ALL)
    assert len(reads) == 1


def test_normalisers_are_fitted_on_observed_training_voxels_in_the_precision_of_the_source():
    def read(split, index, rng):
        x = (
            1e9
            + np.random.default_rng(index).normal(size=(*SHAPE, 1))
            + (1e6 if split != "train" else 0)
        )
        mask = (np.arange(64) % 3 > 0).astype(np.float32).reshape(*SHAPE, 1)
        return {"input": np.where(mask > 0, x, np.nan), "target": x, "mask": mask}

    steps = dict(
        input_normaliser=(("standardise", {}),),
        target_normaliser=(("linear", {"low": 0, "high": 2e9}),),
    )
    d = pipeline.dataset(make_source(read), make_config(batch_size=7, **steps))
    mask = read("train", 0, None)["mask"][..., 0] > 0
    raw = np.concatenate([read("train", i, None)["input"][mask] for i in range(7)])
    (fitted,) = d.spec.fields["input"].normaliser
    np.testing.assert_allclose(
        (fitted["mean"][0], fitted["std"][0]), (raw.mean(), raw.std()), rtol=1e-12
    )
    for precision, dtype in (("f32", np.float32), ("f64", np.float64)):
        batch = pipeline.dataset(
            make_source(read), make_config(batch_size=7, precision=precision, **steps)
        ).batch(0, ALL)
        assert all(leaf.dtype == dtype for leaf in batch.values())
        # 0.02 off, had it been cast first
        np.testing.assert_allclose(batch["input"][:, mask].std(), 1, rtol=1e-6)
        assert (batch["input"][:, ~mask] == 0).all()
    few = (
        pipeline.dataset(make_source(read), make_config(fit_examples=3, **steps))
        .spec.fields["input"]
        .normaliser
    )
    spread = np.concatenate([read("train", i, None)["input"][mask] for i in (0, 3, 6)])
    np.testing.assert_allclose(few[0]["std"][0], spread.std(), rtol=1e-12)
    with pytest.raises(
        UserError, match=r"data.input_normaliser \(channels a\): .*'cube'.*expected one of"
    ):
        pipeline.dataset(make_source(), make_config(input_normaliser=(("cube", {}),)))


def test_augmentation_moves_all_leaves_alike_and_turns_vectors():
    spec = make_spec(3, kind="vector")
    rng = np.random.default_rng(0)
    density = rng.normal(size=(*SHAPE, 1))
    grad = np.concatenate(
        [(np.roll(density, -1, i) - np.roll(density, 1, i)) / 2 for i in range(3)], -1
    )
    seen = set()
    for seed in range(40):
        out = augment(
            {"input": grad, "target": density, "mask": density > 0},
            spec,
            np.random.default_rng(seed),
            ("cube", "shift"),
        )
        moved = out["target"]
        np.testing.assert_allclose(
            out["input"],
            np.concatenate(
                [(np.roll(moved, -1, i) - np.roll(moved, 1, i)) / 2 for i in range(3)], -1
            ),
            atol=1e-14,
        )
        np.testing.assert_array_equal(out["mask"], moved > 0)
        np.testing.assert_array_equal(np.sort(moved.ravel()), np.sort(density.ravel()))
        seen.add(moved.tobytes())
    # of 48 * 64 equally likely ones
    assert len(seen) == 40
    same = augment({"input": grad, "target": density}, spec, rng, ())
    np.testing.assert_array_equal(same["target"], density)


def test_augmentation_keeps_to_the_group_and_the_periodic_axes():
    spec = make_spec(kind="line_of_sight=2", periodic=(True, False, False))
    x = volume(0)
    coordinate = np.broadcast_to(np.arange(4.0)[:, None, None, None], (4, 4, 4, 1))
    group = rotations.allowed(
        spec.shape, spec.spacing, ("line_of_sight=2", "scalar"), spec.periodic
    )
    assert len(group) == 8
    images = {np.roll(rotations.apply(e, x), s, 0).tobytes() for e in group for s in range(4)}
    seen = set()
    for seed in range(300):
        out = augment(
            {"input": x, "target": coordinate}, spec, np.random.default_rng(seed), ("cube", "shift")
        )
        seen.add(out["input"].tobytes())
        # axis 0 never leaves its place
        assert (out["target"] == out["target"][:, :1, :1]).all()
    assert seen == images
    with pytest.raises(UserError, match="no axis of the volumes .* is periodic"):
        pipeline.dataset(
            make_source(spec=make_spec(periodic=(False,) * 3)), make_config(augment=("shift",))
        )
    with pytest.raises(UserError, match="'input' has the kind 'coordinates'.*collocation"):
        pipeline.dataset(
            make_source(spec=make_spec(kind="coordinates")), make_config(augment=("cube",))
        )
    with pytest.raises(UserError, match="names out of cube, transpose, shift"):
        pipeline.dataset(make_source(), make_config(augment=("rotate",)))


def test_read_ahead_is_bounded_and_its_threads_end_with_it():
    def threads():
        return [t for t in threading.enumerate() if t.name.startswith("jaxvol-reader")]

    def wait_for_none():
        deadline = time.time() + 5
        while threads() and time.time() < deadline:
            time.sleep(0.01)
        return not threads()

    assert wait_for_none()
    for finish in ("close", "collect", "exception"):
        source, reads = failing(
            {("train", i) for i in range(7)} if finish == "exception" else set()
        )
        stream = pipeline.dataset(source, make_config(batch_size=1, num_workers=2)).stream(
            0, 10**6, ALL
        )
        if finish == "exception":
            with pytest.raises(UserError):
                next(stream)
        else:
            next(stream)
            time.sleep(0.05)
            # 2 * 2 + 2 ahead of the one handed out
            assert threads() and len(reads) <= 7
        if finish == "close":
            stream.close()
        del stream
        gc.collect()
        assert wait_for_none()
    gate, started = threading.Event(), []

    def gated(split, index, rng):
        started.append(index)
        assert len(started) == 1 or gate.wait(5)
        return {"input": volume(index), "target": volume(index)}

    stream = pipeline.dataset(make_source(gated), make_config(batch_size=1, num_workers=2)).stream(
        0, 10**6, ALL
    )
    next(stream)
    stream.close()
    gate.set()
    # what was queued behind the gate is not read
    assert wait_for_none() and len(started) <= 3


def test_transpose_exchanges_axes_and_never_mirrors():
    x, spec = volume(0), make_spec(periodic=(True, True, True))
    seen = {
        augment({"input": x, "target": x}, spec, np.random.default_rng(seed), ("transpose",))[
            "input"
        ].tobytes()
        for seed in range(80)
    }
    expected = {
        np.ascontiguousarray(x.transpose(*axes, 3)).tobytes()
        for axes in itertools.permutations(range(3))
    }
    assert seen == expected and len(expected) == 6
