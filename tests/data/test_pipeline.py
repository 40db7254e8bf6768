"""Batches are a function of (seed, step): for any number of workers, any slice of rows, and across
restarts.
"""

import numpy as np
import pytest

from jaxvol.data import pipeline
from jaxvol.types import UserError
from tests.data.toys import ALL, assert_same, make_config, make_source, volume, which


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
