"""Third-party files that configs name, where JAXVOL_DATA names the folder that has them."""

import os
from pathlib import Path

import numpy as np
import pytest

from jaxvol.config import base
from jaxvol.data import galaxies, volumes

DATA = Path(os.environ.get("JAXVOL_DATA", "../shared/data"))


def needs(*names):
    missing = [name for name in names if not (DATA / name).is_file()]
    if missing:
        pytest.skip(
            f"no {', '.join(missing)} in {DATA} (set JAXVOL_DATA to the folder that has them)"
        )


def config_of(data, **overrides):
    config = base.common()
    config.data = data
    config.data.update_from_flattened_dict(overrides)
    return config


def test_darcy_flow():
    needs("pde/darcy_train_16.npz", "pde/darcy_test_16.npz")
    config = config_of(
        base.data("volumes"),
        **{
            "root": str(DATA / "pde"),
            "ndim": 2,
            "input.train": "darcy_train_16.npz",
            "input.key": "x",
            "input.test": "darcy_test_16.npz",
            "target.key": "y",
            "fit_examples": 1000,
            "augment": (),
            "input_normaliser": (),
        },
    )
    dataset = volumes.make(config)
    assert dataset.sizes == {"train": 1000, "val": 0, "test": 50} and dataset.spec.shape == (
        1,
        16,
        16,
    )
    every = np.concatenate(
        [batch["target"] for batch in dataset.batches("train", 250, slice(0, 250), 0)]
    )
    np.testing.assert_allclose((every.mean(), every.std()), (0, 1), atol=1e-4)
    test = next(dataset.batches("test", 50, slice(0, 50), 0))
    np.testing.assert_array_equal(
        test["input"][:, 0, ..., 0], np.load(DATA / "pde/darcy_test_16.npz")["x"]
    )


def test_galaxies():
    needs("lss/corrfunc_Mr19_counts_128.npz")
    path = str(DATA / "lss/corrfunc_Mr19_counts_128.npz")
    source = galaxies.source(config_of(base.data("galaxies"), path=path))
    assert source.spec.spacing == (420 / 128,) * 3 and source.spec.wrap == (True,) * 3
    assert source.sizes == {"train": 256, "val": 16, "test": 16}
    counts, _ = galaxies.read_counts(path, 128)
    assert counts.sum() == 1235904
    kept, rest = galaxies.thin(counts, 0.5, 0)
    # the variance of the difference of two halves of the same galaxies is the number of galaxies
    assert abs(((kept - rest) ** 2).sum() / counts.sum() - 1) < 0.01
    test = [source.read("test", i, None) for i in range(16)]
    slab = np.concatenate([example["target"] for example in test]).sum()
    np.testing.assert_allclose(slab, (rest / rest.mean())[96:112].sum(), rtol=1e-5)


def test_galaxies_from_the_catalogue():
    needs("lss/corrfunc_Mr19_counts_128.npz", "lss/gals_Mr19.ff")
    made, _ = galaxies.read_counts(str(DATA / "lss/gals_Mr19.ff"), 128)
    np.testing.assert_array_equal(
        made, galaxies.read_counts(str(DATA / "lss/corrfunc_Mr19_counts_128.npz"), 128)[0]
    )
