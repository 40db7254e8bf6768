"""Users' stacks of fringe images: they come back as they were written, and each bad file is one
clear error that executes nothing.
"""

import os
import pickle

import jax
import numpy as np
import pytest
from PIL import Image

from jaxvol import pdes
from jaxvol.config import components
from jaxvol.data import measured
from jaxvol.data.io import image_stack
from jaxvol.diagnostics.checks import prediction
from jaxvol.ops import fringes, surfaces
from jaxvol.types import UserError
from tests.tasks.test_fringes import BACKGROUND, MODULATION, WAVES, config


def save(folder, images, ending=".png", bits=8, height=None):
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(images.shape[-1]):
        values = np.round(images[..., i] * ((2**bits - 1) / 255)).astype(
            np.uint8 if bits == 8 else np.uint16
        )
        Image.fromarray(values).save(folder / f"bucket_{i:02d}{ending}")
    if height is not None:
        np.save(folder / "ground_truth.npy", height)


def stack(n=12, m=10):
    axes = np.linspace(-1, 1, n), np.linspace(-1, 1, m)
    h = surfaces.published(np.stack(np.meshgrid(*axes), -1))
    return fringes.expose(np.random.default_rng(0), h, WAVES, BACKGROUND, MODULATION, 2.0, 8), h


@pytest.mark.parametrize("ending, bits", [(".png", 8), (".bmp", 8), (".png", 16)])
def test_stacks_come_back_as_they_were_written(tmp_path, ending, bits):
    images, h = stack()
    save(tmp_path / "sample_0003", images, ending, bits, h)
    assert image_stack.samples(str(tmp_path)) == ["sample_0003"]
    found, height = image_stack.read(str(tmp_path / "sample_0003"), 16)
    np.testing.assert_allclose(found, images, atol=1e-9)
    np.testing.assert_array_equal(height, h)
    (tmp_path / "sample_0003/ground_truth.npy").unlink()
    assert image_stack.read(str(tmp_path / "sample_0003"), 16)[1] is None


class Trap:
    """Unpickling it leaves a trace."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def truncate(path):
    path.write_bytes(path.read_bytes()[:60])


def nan(folder):
    values = np.load(folder / "ground_truth.npy")
    values[2, 3] = np.nan
    np.save(folder / "ground_truth.npy", values)


def pickled(folder):
    with open(folder / "ground_truth.npy", "wb") as file:
        np.lib.format.write_array(
            file, np.array([Trap(folder / "executed")], object), allow_pickle=True
        )


BAD = {
    "missing": (
        lambda f: (f / "bucket_07.png").unlink(),
        "found no bucket_07.bmp or .png; expected one file for each of bucket_00 .. bucket_15",
    ),
    "twice": (
        lambda f: (f / "bucket_07.bmp").write_bytes(b""),
        "found both bucket_07.bmp and bucket_07.png",
    ),
    "size": (
        lambda f: Image.new("L", (12, 11)).save(f / "bucket_04.png"),
        "bucket_04.png: found 12 x 11 pixels; expected 12 x 10",
    ),
    "colour": (
        lambda f: Image.new("RGB", (12, 10)).save(f / "bucket_02.png"),
        "bucket_02.png: found a colour image .mode RGB.; expected one grey",
    ),
    "palette": (
        lambda f: Image.new("P", (12, 10)).save(f / "bucket_02.png"),
        "found a colour image .mode P.",
    ),
    "bits": (lambda f: Image.new("1", (12, 10)).save(f / "bucket_02.png"), "found black and white"),
    "truncated": (
        lambda f: truncate(f / "bucket_01.png"),
        "bucket_01.png: cannot be read as BMP or PNG .*record it again",
    ),
    "another format": (
        lambda f: Image.new("L", (12, 10)).save(f / "bucket_01.png", format="GIF"),
        "bucket_01.png: cannot be read as BMP or PNG",
    ),
    "nan": (
        nan,
        "ground_truth.npy: found 1 values that are not finite, the first at .row, column. = .2, 3.",
    ),
    "shape": (
        lambda f: np.save(f / "ground_truth.npy", np.zeros((12, 10))),
        r"ground_truth.npy: found shape \(12, 10\); expected \(10, 12\)",
    ),
    "pickled": (pickled, "ground_truth.npy.*(pickle|unpickled)"),
    "bare pickle": (
        lambda f: (f / "ground_truth.npy").write_bytes(pickle.dumps(Trap(f / "executed"))),
        "ground_truth.npy: cannot be read as .npy",
    ),
}


@pytest.mark.parametrize("fault", BAD)
def test_a_bad_file_gives_one_clear_error_and_nothing_is_executed(tmp_path, fault):
    spoil, message = BAD[fault]
    save(tmp_path, *stack()[:1], height=stack()[1])
    spoil(tmp_path)
    with pytest.raises(UserError, match=message):
        image_stack.read(str(tmp_path), 16)
    assert not (tmp_path / "executed").exists()


def test_folders_without_samples_are_explained(tmp_path):
    with pytest.raises(UserError, match="found no folder sample_0000"):
        image_stack.samples(str(tmp_path))
    with pytest.raises(UserError, match="No such file or directory; expected a folder"):
        image_stack.samples(str(tmp_path / "none"))


def test_users_stacks_reach_both_networks(tmp_path):
    images, h = stack(16, 16)
    for i in range(6):
        save(tmp_path / f"sample_{i:04d}", images, height=None if i == 5 else h)
    dataset = components.dataset(
        config("unet", data__optics__folder=str(tmp_path), data__fractions=(0.5, 0.25, 0.25))
    )
    assert sum(dataset.sizes.values()) == 6
    batches = {split: next(dataset.batches(split, 8, slice(0, 8), 0)) for split in dataset.sizes}
    np.testing.assert_allclose((batches["train"]["input"][0, 0] + 1) * 127.5, images, atol=1e-3)
    masks = np.concatenate([b["mask"][b["_mask"] > 0] for b in batches.values()])
    # the one without a ground truth is not scored
    assert sorted(masks.mean((1, 2, 3, 4))) == [0, 1, 1, 1, 1, 1]
    for i in range(5):
        (tmp_path / f"sample_{i:04d}/ground_truth.npy").unlink()
    alone = components.dataset(
        config("unet", data__optics__folder=str(tmp_path), data__fractions=(0.5, 0.25, 0.25))
    )
    # heights are not needed for training
    assert not alone.batch(0, slice(0, 8))["mask"].any() and alone.hash != dataset.hash
    np.save(tmp_path / "sample_0001/ground_truth.npy", h)
    block = pdes.fields("interferometry")
    block.folder, block.sample = str(tmp_path), "sample_0001"
    problem = measured.problem(block)
    np.testing.assert_allclose(problem.solution(problem.mesh, np)[..., 0], h.T)
    assert np.abs(problem.estimates["unwrapping"][..., 0] - h.T).max() < 0.05
    block.sample = "sample_0005"
    assert np.isnan(measured.problem(block).solution(problem.mesh, np)).all()
    block.sample = "sample_9999"
    with pytest.raises(UserError, match="sample_0000, sample_0001"):
        measured.problem(block)


def test_heights_that_nobody_knows_are_not_scored(tmp_path):
    images, h = stack(16, 16)
    save(tmp_path / "sample_0000", images, height=h)
    save(tmp_path / "sample_0001", images)
    for sample, metrics in (
        ("sample_0000", {"rmse", "mae", "mape", "relative_l2"}),
        ("sample_0001", set()),
    ):
        chosen = config("pinn", data__problem__folder=str(tmp_path), data__problem__sample=sample)
        dataset = components.dataset(chosen)
        task = components.task(chosen, dataset.spec)
        batch = next(dataset.batches("test", 1, slice(0, 1), 0))
        weights = jax.eval_shape(task.init, jax.random.key(0), batch)
        rows = jax.eval_shape(task.evaluate, *weights, batch, jax.random.key(0))
        assert set(rows) == {"loss", "loss_pde", "loss_images"} | metrics
        assert (
            bool(components.baselines(chosen, dataset.spec, [batch]))
            == bool(metrics)
            == bool(prediction.known(batch)[0])
        )
    hidden = {
        "target": np.zeros((2, 1, 3)),
        "mask": np.array([[[1, 0, 0]], [[0, 0, 0]]]),
        "_mask": np.ones(2),
    }
    assert prediction.known(hidden).tolist() == [True, False]
