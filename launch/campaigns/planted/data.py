"""Faults of the data: what is read, how it is paired, divided, turned and normalised."""

from __future__ import annotations

import dataclasses

import numpy as np

from jaxvol.config import components
from jaxvol.data import pipeline
from jaxvol.ops import normalise
from launch.campaigns.planted import Fault, replaced


def source(change):
    """Patch the examples as they are read: change(example, split, index, read) -> example."""

    def make(dataset):
        def faulty(files, config):
            def read(split, index, rng):
                another = lambda s, i: files.read(s, i, rng)
                return change(dict(another(split, index)), split, index, another)

            return dataset(dataclasses.replace(files, read=read), config)

        return faulty

    return {}, [replaced(pipeline, "dataset", make)]


def target(move, share: float = 1.0):
    """Patch the targets of a share of the examples."""

    def change(example, split, index, read):
        if index % 100 < 100 * share:
            example["target"] = move(example["target"])
        return example

    return source(change)


def another(share: float):
    """The target of the next example, for a share of the examples."""

    def change(example, split, index, read):
        if index % 4 < 4 * share:
            example["target"] = read(split, index ^ 1)["target"]
        return example

    return source(change)


def half_voxel(amount: float):
    """Displaced along the depth by a fraction of a voxel, linearly interpolated."""
    whole, part = int(amount), amount % 1
    return lambda y: (1 - part) * np.roll(y, whole, 0) + part * np.roll(y, whole + 1, 0)


def leaked(share: float):
    """The first slices of validation examples are those of training ones, moved and mirrored."""

    def change(example, split, index, read):
        if split == "val":
            depth, known = max(round(share * 16), 1), read("train", index)
            for name in ("input", "target"):
                example[name] = np.concatenate([known[name][-depth:, ::-1], example[name][depth:]])
        return example

    return source(change)


def copies(count: int):
    """The first examples of the training split are all the same."""
    return source(
        lambda example, split, index, read: (
            dict(read(split, 0)) if split == "train" and index <= count else example
        )
    )


def flat(share: float):
    """A share of the inputs is constant."""

    def change(example, split, index, read):
        if index % 20 < 20 * share:
            example["input"] = np.ones_like(example["input"])
        return example

    return source(change)


def missing(voxels: int):
    """So many voxels of the first examples are NaN after the normaliser."""

    def make(normalised):
        def faulty(example, spec, dtype):
            example = normalised(example, spec, dtype)
            x = np.array(example["input"])
            x.reshape(-1)[:voxels] = np.nan
            return {**example, "input": x}

        return faulty

    return {}, [replaced(pipeline, "_normalise", make)]


def one_sided(name: str):
    """The input is turned (or shifted) by the augmentation, the target stays."""

    def make(augment):
        def faulty(example, spec, rng, names):
            return {**augment(example, spec, rng, (name,)), "target": example["target"]}

        return faulty

    return {}, [replaced(pipeline, "augment", make)]


def inverse(power: float):
    """The normaliser is undone with a wrong standard deviation; 0: not undone at all."""

    def make(undo):
        def faulty(fitted, x):
            return x if power == 0 else undo(fitted, x * power)

        return faulty

    return {}, [replaced(normalise, "inverse", make)]


def refitted(shift: float):
    """Inputs are off by so many standard deviations: the normaliser was fitted on other data."""

    def make(normalised):
        def faulty(example, spec, dtype):
            example = normalised(example, spec, dtype)
            return {**example, "input": example["input"] + np.asarray(shift, dtype)}

        return faulty

    return {}, [replaced(pipeline, "_normalise", make)]


def cut(slope: float):
    """Crops that claim to be periodic: a ramp across the depth axis."""

    def change(example, split, index, read):
        ramp = np.linspace(-1, 1, len(example["target"]))[:, None, None, None].astype(np.float32)
        example["target"] = example["target"] + slope * example["target"].std() * ramp
        return example

    return source(change)


def same_batch(period: int):
    """The order of the examples starts again every few steps."""

    def make(dataset):
        def faulty(config):
            made = dataset(config)
            batch = lambda step, rows: made.batch(step % period, rows)
            return dataclasses.replace(made, batch=batch)

        return faulty

    return {}, [replaced(components, "dataset", make)]


FAULTS = (
    Fault(
        "input and target shuffled",
        "fno",
        "data",
        (0.5, 1.0),
        another,
        ("baselines", "overfit", "prediction"),
    ),
    Fault(
        "target mirrored",
        "vnet",
        "data",
        (0, 2),
        lambda s: target(lambda y: np.flip(y, s).copy()),
        ("prediction", "baselines"),
    ),
    Fault(
        "axes of the target exchanged",
        "vit3d",
        "data",
        ((0, 2, 1, 3), (2, 1, 0, 3)),
        lambda s: target(lambda y: y.transpose(s).copy()),
        ("prediction", "baselines"),
    ),
    Fault(
        "target shifted by voxels",
        "fno",
        "data",
        (0.5, 1.0, 2.0),
        lambda s: target(half_voxel(s)),
        ("vnet", "vit3d"),
    ),
    Fault(
        "NaN in the normalised input",
        "fno",
        "data",
        (1, 4096),
        missing,
        (
            "state",
            "schedule",
            "structure",
            "fno",
            "numerics",
            "gradients",
            "lr_range",
            "overfit",
            "baselines",
            "prediction",
            "spectra",
            "tiling",
        ),
    ),
    Fault("constant volumes", "vnet", "data", (0.25, 0.5), flat),
    Fault("duplicated volumes", "fno", "data", (1, 8), copies),
    Fault("overlapping train and validation crops", "fno", "data", (0.1, 1.0), leaked),
    Fault("normaliser not inverted", "fno", "data", (1.1, 0.0), inverse, ("prediction",)),
    Fault("normaliser of other data", "vit3d", "data", (1.2, 3.0), refitted),
    Fault(
        "augmentation on the input only",
        "fno",
        "data",
        ("transpose", "cube", "shift"),
        one_sided,
        ("overfit", "prediction", "baselines"),
    ),
    Fault("crops that claim to be periodic", "vnet", "data", (3.0, 6.0), cut, ("baselines",)),
    Fault("the same batch at every step", "fno", "data", (1,), same_batch),
)
