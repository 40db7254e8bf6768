"""Predictions for files: read, normalise, predict whole or tile by tile, undo the normalisation,
write.

<workdir>/predictions/<relative path>         same container as the input, float32, physical units,
attributes kept
<workdir>/predictions/<relative path>.json    what made it
"""

from __future__ import annotations

import glob
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from tqdm import tqdm

from jaxvol.data.io import files
from jaxvol.ops import normalise, window
from jaxvol.types import Array, NonFiniteError, Spec, UserError

KEY = "prediction"  # of the array, in containers that have keys
# accepted axes, the first that fits is taken
VOLUMES = ("DHW", "DHWC", "CDHW", "NDHW", "NDHWC", "NCDHW")
PLANES = ("HW", "HWC", "CHW", "NHW", "NHWC", "NCHW", "NDHWC", "NCDHW")
NIFTI = ("DHW", "DHWC")  # there the fourth axis is never a stack of volumes


class Plan(NamedTuple):
    """One file to predict: where it is read, where it is written, and what its axes are."""

    source: Path
    output: Path
    key: str
    shape: tuple[int, ...]
    axes: str  # of VOLUMES or PLANES


def predict(
    config: Any,
    spec: Spec,
    predict_fn: Callable[[Array], Array],
    workdir: str | os.PathLike,
    made_by: Mapping[str, Any],
    key: str = "",
) -> list[Path]:
    """Predict every file of `config.predict.input` and return the files written.

    predict_fn: normalised [1, D, H, W, C] -> normalised [1, D, H, W, K]; called with one shape per
                tile (or volume) size.
    made_by:    run, checkpoint, weights, config hash, versions: goes into the JSON beside each
                prediction.
    key:        dataset inside the files when config.predict.key is "" (the one that training read).
    All files are checked before the first is predicted.  UserError: no file matches, missing key,
    axes that do not fit the channels of the model, values that are not finite, a tile that fits no
    volume, an output outside of predictions/.
    NonFiniteError: the model's answer is not finite; nothing is written then.
    """
    asked = config.predict
    tile = check_tile(asked.tile, spec)
    root = Path(workdir) / "predictions"
    dtype = np.float64 if config.precision == "f64" else np.float32
    plans = [
        plan(source, output, asked.key or key, spec)
        for source, output in targets(asked.input, root)
    ]
    written = []
    hidden = jax.process_index() != 0
    for found in (bar := tqdm(plans, desc="predict", unit="file", disable=hidden)):
        bar.set_postfix_str(found.source.name)
        result = predict_file(found, spec, predict_fn, tile, asked.overlap, dtype)
        if not hidden:
            files.write(str(found.output), KEY, result, like=str(found.source), like_key=found.key)
            note = {
                "input": str(found.source),
                "fingerprint": files.fingerprint(str(found.source)),
                "key": found.key,
                "axes": found.axes,
                "input_shape": list(found.shape),
                "shape": list(result.shape),
                "channels": list(spec.fields["target"].channels),
                "unit": spec.fields["target"].unit,
                "tile": list(tile),
                "overlap": asked.overlap if tile else None,
                "wrap": list(spec.wrap),
                **made_by,
            }
            write_note(found.output, note)
        written.append(found.output)
    return written


def predict_file(
    found: Plan,
    spec: Spec,
    predict_fn: Callable[[Array], Array],
    tile: tuple[int, ...],
    overlap: float,
    dtype: Any = np.float32,
) -> np.ndarray:
    """Prediction for one file, its axes arranged as the input's (a stack [N, ...] volume by
    volume).
    """
    inner = found.axes.replace("N", "")
    results = []
    for i in range(found.shape[0] if "N" in found.axes else 1):
        where = f"{found.source}, key '{found.key}'" + (
            f", volume {i} of the stack" if "N" in found.axes else ""
        )
        x = files.read(str(found.source), found.key, (i,) if "N" in found.axes else None)
        x = to_volume(np.asarray(x), inner)
        if bad := int(np.size(x) - np.isfinite(x).sum()):
            first = tuple(int(n) for n in np.argwhere(~np.isfinite(x))[0])
            raise UserError(
                f"{where}: found {bad} values that are NaN or infinite, the first at [D, H, W, C] "
                f"= {first}; "
                "expected finite values: repair or fill them"
            )
        y = predict_volume(x.astype(dtype), spec, predict_fn, tile, overlap)
        if not np.isfinite(y).all():
            raise NonFiniteError(
                f"{where}: the prediction is not finite; the input may lie far outside of what the "
                "model "
                "was trained on (wrong unit or key?)"
            )
        results.append(from_volume(y, inner))
    return np.stack(results) if "N" in found.axes else results[0]


def predict_volume(
    x: np.ndarray,
    spec: Spec,
    predict_fn: Callable[[Array], Array],
    tile: tuple[int, ...] = (),
    overlap: float = 0.5,
) -> np.ndarray:
    """Physical units in and out, [D, H, W, C] -> [D, H, W, K]; tile () = the whole volume at once.

    Tiles wrap round the axes where `spec.wrap`; the weighted mean of overlapping tiles is taken in
    normalised units.
    """
    normalised = np.asarray(normalise.forward(spec.fields["input"].normaliser, x), x.dtype)

    def call(volume: np.ndarray) -> np.ndarray:
        y = jax.device_get(predict_fn(jnp.asarray(volume[None])))[0]
        return y.astype(np.promote_types(y.dtype, np.float32))

    if tile:

        def track(corners: list) -> Any:
            return tqdm(corners, desc="tiles", leave=False, disable=jax.process_index() != 0)

        y = window.sliding(call, normalised, tile, overlap, spec.wrap, track=track)
    else:
        y = call(normalised)
    return np.asarray(normalise.inverse(spec.fields["target"].normaliser, y))


def targets(pattern: str, root: Path) -> list[tuple[Path, Path]]:
    """(file, where its prediction goes) for a file name or a glob; the part after the last folder
    without `*?[` is kept.

    Folders count as files where they are containers (.zarr).  UserError when nothing matches, or a
    path would leave `root` or overwrite an input.
    """
    if not pattern:
        raise UserError(
            "predict.input is empty; name a file or a glob with --config.predict.input='boxes/*.h5'"
        )
    pattern = os.path.expanduser(pattern)
    if os.path.exists(pattern):
        base, found = Path(pattern).parent, [pattern]
    else:
        parts = Path(pattern).parts
        wild = next((i for i, part in enumerate(parts) if glob.has_magic(part)), len(parts) - 1)
        base = Path(*parts[:wild])
        found = sorted(glob.glob(pattern, recursive=True))
        found = [f for f in found if is_volume(f)]
    if not found:
        raise UserError(
            f"predict.input='{pattern}' matches no volume; expected a file or a glob of files "
            "ending in "
            f"{' '.join(files.EXTENSIONS)}, seen from {os.getcwd()}"
        )
    pairs: dict[str, tuple[Path, Path]] = {}
    for name in found:
        relative = os.path.relpath(os.path.abspath(name), os.path.abspath(base))
        output = root / relative
        inside = (
            output.resolve().is_relative_to(root.resolve())
            and relative != "."
            and ".." not in Path(relative).parts
        )
        if not inside:
            raise UserError(
                f"{name}: its prediction would be written to {output}, outside of {root}; "
                "use a pattern without '..' after the first '*'"
            )
        if output.exists() and os.path.samefile(output, name):
            raise UserError(
                f"{name}: its prediction would overwrite it; move the input out of {root}"
            )
        pairs[relative] = (Path(name), output)
    return list(pairs.values())


def is_volume(path: str) -> bool:
    """Whether the name is that of a container that can be read."""
    return path.lower().endswith(files.EXTENSIONS) and (
        os.path.isfile(path) or path.lower().endswith(".zarr")
    )


def plan(source: Path, output: Path, key: str, spec: Spec) -> Plan:
    """Read the header of a file and decide what its axes are; warn when its voxels have another
    size than the training's.
    """
    kind = files.extension(str(source))
    key, shape, _ = files.header(str(source), key)
    channels = spec.fields["input"].channels
    flat = spec.shape[0] == 1
    accepted = NIFTI if kind.startswith(".nii") and not flat else PLANES if flat else VOLUMES
    axes = find_axes(shape, len(channels), accepted)
    if not axes:
        wanted = ", ".join(f"[{','.join(a)}]" for a in accepted if "C" in a or len(channels) == 1)
        raise UserError(
            f"{source}, key '{key}': found shape {shape}; the model takes {len(channels)} "
            "channel(s) "
            f"({', '.join(channels)}) as {wanted}"
            + (" with D = 1" if flat else "")
            + "; choose another dataset with --config.predict.key or rearrange the axes"
        )
    spacing = files.metadata(str(source), key)["spacing"]
    if spacing is not None and not np.allclose(spacing, spec.spacing, rtol=0.01):
        logging.warning(
            "%s: voxels of %s, but the model was trained on voxels of %s %s",
            source,
            tuple(float(f"{s:.4g}") for s in spacing),
            tuple(spec.spacing),
            spec.unit,
        )
    return Plan(source, output, key, shape, axes)


def find_axes(shape: tuple[int, ...], channels: int, accepted: tuple[str, ...]) -> str:
    """The first of `accepted` that has this many axes and channels ("" = none); no C means one
    channel.
    """
    for axes in accepted:
        if len(axes) == len(shape) and (shape[axes.index("C")] if "C" in axes else 1) == channels:
            if accepted is not PLANES or "D" not in axes or shape[axes.index("D")] == 1:
                return axes
    return ""


def to_volume(x: np.ndarray, axes: str) -> np.ndarray:
    """[D, H, W, C] from an array without a stack axis."""
    x = np.moveaxis(x, axes.index("C"), -1) if "C" in axes else x[..., None]
    return x if "D" in axes else x[None]


def from_volume(y: np.ndarray, axes: str) -> np.ndarray:
    """The inverse of `to_volume`; without C, one output channel is dropped and several become the
    last axis.
    """
    y = y if "D" in axes else y[0]
    if "C" in axes:
        return np.moveaxis(y, -1, axes.index("C"))
    return y[..., 0] if y.shape[-1] == 1 else y


def check_tile(tile: tuple[int, ...], spec: Spec) -> tuple[int, ...]:
    """The tile as integers; UserError unless it is () or three positive numbers, (1, H, W) for 2D
    fields.
    """
    tile = tuple(int(n) for n in tile)
    if tile and (len(tile) != 3 or min(tile) < 1 or (spec.shape[0] == 1 and tile[0] != 1)):
        raise UserError(
            f"predict.tile={tile}; expected () for the whole volume at once, or three positive "
            "numbers "
            f"(D, H, W){', D = 1 for 2D fields' if spec.shape[0] == 1 else ''}, e.g. "
            f"{tuple(spec.shape)}"
        )
    return tile


def write_note(output: Path, note: Mapping[str, Any]) -> None:
    """Write <output>.json in one step."""
    path = output.with_name(output.name + ".json")
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    partial.write_text(json.dumps(note, indent=1) + "\n", encoding="utf-8")
    os.replace(partial, path)
