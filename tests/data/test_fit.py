"""Normalisers: fitted on observed voxels of training examples alone."""

import numpy as np
import pytest

from jaxvol.data import pipeline
from jaxvol.types import UserError
from tests.data.toys import ALL, SHAPE, make_config, make_source


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
