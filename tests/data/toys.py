"""Sources, files and configs of the data tests, whose truths can be written down."""

import h5py
import numpy as np
import pytest
from ml_collections import ConfigDict

from jaxvol.config import base
from jaxvol.data.source import Source
from jaxvol.types import Field, Spec, UserError

ALL = slice(None)
SHAPE = (4, 4, 4)


def make_config(batch_size=4, precision="f32", **data):
    """The fields that the pipeline reads; `data`: changes of config.data."""
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
    """Which examples a batch holds."""
    return batch["input"][:, 0, 0, 0, 0].astype(int).tolist()


def assert_same(a, b):
    assert a.keys() == b.keys()
    for name in a:
        np.testing.assert_array_equal(a[name], b[name])
        assert a[name].dtype == b[name].dtype


def config_of(name, **overrides):
    """The common config with the dataset `name` and changes of config.data by dotted name."""
    config = base.common()
    config.data = base.data(name)
    with config.data.unlocked():
        config.data.update_from_flattened_dict(overrides)
    return config


def error(function, *args):
    """The message of the UserError that the call raises."""
    with pytest.raises(UserError) as caught:
        function(*args)
    return str(caught.value)


def h5(path, **arrays):
    """An HDF5 file with these arrays; its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        for key, array in arrays.items():
            file[key] = array
    return str(path)
