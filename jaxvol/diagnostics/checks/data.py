"""The data as the run sees it: finite and varied, paired and aligned, in disjoint splits, periodic
where it claims to be, normalised and back without loss.

Run it alone with --mode=preflight --config.preflight.only="('data',)".
"""

from __future__ import annotations

import hashlib

import numpy as np

from jaxvol.diagnostics import probe
from jaxvol.diagnostics.records import Context
from jaxvol.ops import alignment, normalise
from jaxvol.types import Result

RANK = 10
NEEDS = ("volumes", "paired")
LOOK = "look at the pictures of the check 'prediction' and at the files named in config.data"
MEANING = {
    "not_finite": (
        "share of values that are NaN or infinite",
        "mask or repair them before training; one is enough to stop a run",
    ),
    "constant": (
        "share of channels without any variation",
        "remove these channels or examples; " + LOOK,
    ),
    "duplicates": (
        "examples that are identical to another one",
        "remove copies, or one split leaks into another",
    ),
    "largest": (
        "largest normalised value, in standard deviations",
        "use a normaliser that tames the tail: log1p, asinh, percentile",
    ),
    "mean_off": (
        "mean of the normalised training fields, in standard deviations",
        "the normaliser was fitted on other data: check data.*_normaliser and data.fit_examples",
    ),
    "scale_off": (
        "|log2| of the standard deviation of the normalised training fields, which should be 1",
        "the normaliser was fitted on other data: check data.*_normaliser and data.fit_examples",
    ),
    "round_trip": (
        "error of normalising and undoing it, relative to the field's standard deviation",
        "the normaliser loses information (clip, floor) or its inverse is wrong: predictions would "
        "come back wrong",
    ),
    "pairing": (
        "standard errors by which inputs correlate better with their own target than with another",
        "inputs and targets are shuffled, or unrelated: compare the lists of files",
    ),
    "unpaired": (
        "share of the examples whose input is no more like its own target than like another",
        "some inputs and targets are exchanged: compare the lists of files",
    ),
    "orientation": (
        "standard errors by which the given orientation fits better than any other",
        "input and target are mirrored or turned against each other: check axis order and affine",
    ),
    "offset": (
        "voxels by which the target is displaced against the input",
        "align them: half-voxel conventions, crops taken at different corners, or interpolation",
    ),
    "augmented_pairing": (
        "standard errors by which augmented inputs correlate better with their own target than "
        "with another",
        "the augmentation treats input and target differently",
    ),
    "augmented_unpaired": (
        "share of the augmented examples whose input is no more like its own target than like "
        "another",
        "the augmentation treats input and target differently",
    ),
    "augmented_agreement": (
        "correlation of input and target in augmented training batches over that without "
        "augmentation",
        "the augmentation treats input and target differently",
    ),
    "augmented_orientation": (
        "standard errors by which the orientation of augmented examples fits better than any other",
        "the augmentation turns input and target differently",
    ),
    "augmented_offset": (
        "voxels by which augmented targets are displaced against their inputs",
        "the augmentation shifts input and target differently",
    ),
    "same_batches": (
        "training batches that repeat the one before",
        "the order of the examples does not change with the step",
    ),
    "overlap": (
        "share of validation and test voxels that occur in training examples as well",
        "split by box, patient or slab with a buffer of one crop",
    ),
    "wrap": (
        "jump across the faces of axes that claim to be periodic, relative to the steps inside",
        "set data.periodic to what the volumes are; crops of a periodic box are not periodic",
    ),
}
LIMITS = {
    "not_finite": ("<", 0.0, 0.0),  # share of values
    "constant": ("<", 0.0, 0.2),  # share of channels of examples
    "duplicates": ("<", 0.0, 0.0),  # identical examples
    "largest": ("<", 50.0, 1e4),  # standard deviations
    "mean_off": ("<", 0.2, 1.0),  # standard deviations
    "scale_off": ("<", 0.5, 2.0),  # |log2|
    "round_trip": ("<", 1e-3, 0.05),  # standard deviations
    "pairing": (">", 6.0, 3.0),  # standard errors
    "unpaired": ("<", 0.0, 0.2),  # share of examples
    "orientation": (">", 3.0, 0.0),  # standard errors
    "offset": ("<", 0.15, 0.35),  # voxels
    "augmented_pairing": (">", 6.0, 3.0),  # standard errors
    "augmented_unpaired": ("<", 0.0, 0.2),  # share of examples
    "augmented_agreement": (">", 0.8, 0.6),  # ratio of correlations
    "augmented_orientation": (">", 3.0, 0.0),  # standard errors
    "augmented_offset": ("<", 0.15, 0.35),  # voxels
    "same_batches": ("<", 0.0, 1.0),  # batches
    "overlap": ("<", 0.0, 0.01),  # share of voxels
    "wrap": ("<", 1.5, 2.0),  # ratio
}
TRAINING = 32  # training examples that are searched for copies of validation voxels


def applies(config) -> bool:
    return True


def diagnose(ctx: Context) -> Result:
    """All metrics of MEANING; those of a split that is empty, or of a pair that has too little in
    common to tell, are absent.
    """
    count = ctx.config.preflight.examples
    splits = {
        name: read(ctx, name, TRAINING if name == "train" else count)
        for name in ("train", "val", "test")
        if ctx.dataset.sizes[name] > 0
    }
    plain = splits[probe.split(ctx)]
    steps = -(-count // ctx.config.batch_size)
    batches = [
        {k: np.asarray(v) for k, v in ctx.batch(step).items()} for step in range(max(steps, 3))
    ]
    metrics = contents(ctx, splits) | compared(plain, gather(batches[:steps]))
    if ctx.dataset.sizes["train"] > ctx.config.batch_size:
        metrics["same_batches"] = float(
            sum(all(np.array_equal(a[k], b[k]) for k in a) for a, b in zip(batches, batches[1:]))
        )
    if len(splits) > 1:
        training = [x[None] for x in splits["train"]["target"][..., 0]]
        metrics["overlap"] = max(
            alignment.overlap(training, examples["target"][..., 0])
            for name, examples in splits.items()
            if name != "train"
        )
    if any(ctx.spec.periodic):
        metrics["wrap"] = wrap(plain, ctx.spec.periodic)
    table = [
        {
            "split": name,
            "examples": ctx.dataset.sizes[name],
            "field": leaf,
            "mean": float(v.mean()),
            "std": float(v.std()),
            "min": float(v.min()),
            "max": float(v.max()),
        }
        for name, examples in splits.items()
        for leaf, v in examples.items()
        if leaf in ctx.spec.fields
    ]
    return Result(metrics, {"normalised fields": table})


def read(ctx: Context, split: str, examples: int) -> dict[str, np.ndarray]:
    """Up to so many examples of a split, not augmented, normalised; padding dropped."""
    batches = ctx.batches(split, examples)
    real = [{name: v[batch["_mask"] > 0] for name, v in batch.items()} for batch in batches]
    return gather([probe.unmarked(batch) for batch in real])


def gather(batches: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """The batches as one."""
    return {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}


def contents(ctx: Context, splits: dict[str, dict[str, np.ndarray]]) -> dict[str, float]:
    """What can be said of each field by itself."""
    fields = [
        examples[leaf]
        for examples in splits.values()
        for leaf in ctx.spec.fields
        if leaf in examples
    ]
    spread = np.concatenate([v.std(axis=(1, 2, 3)).ravel() for v in fields])
    prints = [
        hashlib.sha256(np.ascontiguousarray(volume).tobytes()).digest()
        for examples in splits.values()
        if "input" in examples
        for volume in examples["input"]
    ]
    off, trip = [], []
    for leaf, field in ctx.spec.fields.items():
        v = splits["train"][leaf]
        physical = np.asarray(normalise.inverse(field.normaliser, v))
        again = np.asarray(normalise.forward(field.normaliser, physical))
        trip.append(float(np.abs(again - v).max() / max(v.std(), 1e-30)))
        if field.normaliser and field.normaliser[-1]["name"] in ("standardise", "zscore"):
            off.append((abs(float(v.mean())), abs(float(np.log2(max(v.std(), 1e-30))))))
    metrics = {
        "not_finite": float(np.mean([np.mean(~np.isfinite(v)) for v in fields])),
        "constant": float((spread == 0).mean()),
        "duplicates": float(len(prints) - len(set(prints))),
        "largest": max(float(np.abs(v).max()) for v in fields),
        "round_trip": max(trip),
    }
    if off:
        metrics |= {"mean_off": max(m for m, _ in off), "scale_off": max(s for _, s in off)}
    return metrics


def compared(plain: dict[str, np.ndarray], augmented: dict[str, np.ndarray]) -> dict[str, float]:
    """Pairing, orientation and offset of plain and of augmented examples, and what augmentation
    leaves of the correlation of input and target, where there is one.
    """
    before, after = relation(plain), relation(augmented)
    metrics = before | {f"augmented_{name}": value for name, value in after.items()}
    if before and after:
        agreement = correlation(plain)
        if agreement > 0.1:
            metrics["augmented_agreement"] = correlation(augmented) / agreement
    return metrics


def relation(examples: dict[str, np.ndarray]) -> dict[str, float]:
    """Pairing, orientation and offset of the first channels; absent where the two have too little
    in common to tell.
    """
    if "target" not in examples or "input" not in examples or len(examples["input"]) < 3:
        return {}
    x, y = examples["input"][..., 0], examples["target"][..., 0]
    metrics = {"pairing": alignment.pairing(x, y)}
    if (share := alignment.unpaired(x, y)) is not None:
        metrics["unpaired"] = share
    if (better := alignment.orientation(x, y)) is not None:
        metrics["orientation"] = better
    if alignment.coherence(x, y) > max(0.3, 3 / len(x)):
        metrics["offset"] = float(np.nanmax(np.abs(alignment.offset(x, y)), initial=0.0))
    return metrics


def correlation(examples: dict[str, np.ndarray]) -> float:
    """|correlation| of the first channels of input and target."""
    x, y = (alignment.standardised(examples[name][..., 0]) for name in ("input", "target"))
    return abs(float((x * y).mean()))


def wrap(examples: dict[str, np.ndarray], periodic: tuple[bool, bool, bool]) -> float:
    """Largest ratio of the mean step across the faces to the mean step inside, over axes that claim
    to be periodic.
    """
    ratios = [0.0]
    for v in (examples[name] for name in ("input", "target") if name in examples):
        for axis in (a + 1 for a in range(3) if periodic[a] and v.shape[a + 1] > 1):
            inside = np.abs(np.diff(v, axis=axis)).mean()
            across = np.abs(np.take(v, 0, axis) - np.take(v, -1, axis)).mean()
            ratios.append(float(across / max(inside, 1e-30)))
    return max(ratios)
