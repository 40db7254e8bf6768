"""Reads that fail: retried with the same draws, then the run stops or skips; threads end with their
iterator; bad examples are named.
"""

import gc
import threading
import time

import numpy as np
import pytest

from jaxvol.data import pipeline
from jaxvol.types import UserError
from tests.data.toys import ALL, failing, make_config, make_source, volume, which


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
        # the first passes; another thread may start before this line is reached
        assert started[0] == index or gate.wait(5)
        return {"input": volume(index), "target": volume(index)}

    stream = pipeline.dataset(make_source(gated), make_config(batch_size=1, num_workers=2)).stream(
        0, 10**6, ALL
    )
    next(stream)
    stream.close()
    gate.set()
    # what was queued behind the gate is not read
    assert wait_for_none() and len(started) <= 3
