"""Files to predict: which ones, where their predictions go, what their axes are, and what makes one
unusable.
"""

from __future__ import annotations

import contextlib
import glob
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from absl import logging

from jaxvol.data.io import files
from jaxvol.types import Spec, UserError

KEY = "prediction"  # of the array that is written, in containers that have keys
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


def targets(pattern: str, root: Path) -> list[tuple[Path, Path]]:
    """(file, where its prediction goes) for a file name or a glob; the part after the last folder
    without `*?[` is kept.

    Folders count as files where they are containers (.zarr).  UserError when nothing matches.
    """
    if not pattern:
        raise UserError(
            "predict.input is empty; name a file or a glob with --config.predict.input='boxes/*.h5'"
        )
    pattern = os.path.expanduser(pattern)
    if os.path.exists(pattern):
        base, names = Path(pattern).parent, [pattern]
    else:
        parts = Path(pattern).parts
        wild = next((i for i, part in enumerate(parts) if glob.has_magic(part)), len(parts) - 1)
        base = Path(*parts[:wild])
        names = [name for name in sorted(glob.glob(pattern, recursive=True)) if is_volume(name)]
    if not names:
        raise UserError(
            f"predict.input='{pattern}' matches no volume; expected a file or a glob of files "
            f"ending in {' '.join(files.EXTENSIONS)}, seen from {os.getcwd()}"
        )
    relative = [os.path.relpath(os.path.abspath(n), os.path.abspath(base)) for n in names]
    return [(Path(name), root / end) for name, end in zip(names, relative, strict=True)]


def is_volume(path: str) -> bool:
    """Whether the name is that of a container that can be read."""
    return path.lower().endswith(files.EXTENSIONS) and (
        os.path.isfile(path) or path.lower().endswith(".zarr")
    )


def note_of(output: Path) -> Path:
    """The JSON file beside a prediction."""
    return output.with_name(output.name + ".json")


def check_output(source: Path, output: Path, root: Path) -> None:
    """UserError if the prediction would leave `root`, overwrite its input, or take the place of a
    folder; only an earlier prediction may be replaced.
    """
    relative = os.path.relpath(output, root)
    inside = output.resolve().is_relative_to(root.resolve()) and relative != "."
    if not inside or ".." in Path(relative).parts:
        raise UserError(
            f"{source}: its prediction would be written to {output}, outside of {root}; "
            "use a pattern without '..' after the first '*'"
        )
    if output.exists() and os.path.samefile(output, source):
        raise UserError(
            f"{source}: its prediction would overwrite it; move the input out of {root}"
        )
    for path in (output, note_of(output)):
        if path.is_dir() and not is_prediction(path):
            raise UserError(
                f"{source}: its prediction would be written to {path}, but a folder that is no "
                "prediction has this name; rename or move it"
            )


def is_prediction(folder: Path) -> bool:
    """Whether a folder is a Zarr group as `predict` writes them: one array, under KEY."""
    try:
        return folder.suffix.lower() == ".zarr" and set(files.inspect(str(folder))) == {KEY}
    except UserError:
        return False


def plan(source: Path, output: Path, root: Path, key: str, spec: Spec) -> Plan:
    """Read the header of a file and decide what its axes are; warn when its voxels have another
    size than the training's.

    UserError: a missing key, axes that do not fit the channels of the model, an affine or
    attributes that could not be written again, an output that `check_output` refuses.
    """
    check_output(source, output, root)
    container = files.extension(str(source))
    with one_sentence(source, "it cannot be read"):
        key, shape, _ = files.header(str(source), key)
        metadata = files.metadata(str(source), key)
        check_metadata(source, metadata)
    flat = spec.shape[0] == 1
    accepted = NIFTI if container.startswith(".nii") and not flat else PLANES if flat else VOLUMES
    axes = find_axes(shape, len(spec.fields["input"].channels), accepted)
    if not axes:
        raise UserError(
            f"{source}, key '{key}': {mismatch(shape, spec, accepted)}"
            + (" with D = 1" if flat else "")
            + "; choose another dataset with --config.predict.key or rearrange the axes"
        )
    spacing = metadata["spacing"]
    if spacing is not None and not np.allclose(spacing, spec.spacing, rtol=0.01):
        logging.warning(
            "%s: voxels of %s, but the model was trained on voxels of %s %s",
            source,
            tuple(float(f"{s:.4g}") for s in spacing),
            tuple(spec.spacing),
            spec.unit,
        )
    return Plan(source, output, key, shape, axes)


def mismatch(shape: tuple[int, ...], spec: Spec, accepted: tuple[str, ...]) -> str:
    """ "found shape (8, 8); the model takes 1 channel(s) (density) as [D,H,W], ..." """
    channels = spec.fields["input"].channels
    wanted = ", ".join(f"[{','.join(a)}]" for a in accepted if "C" in a or len(channels) == 1)
    return (
        f"found shape {tuple(shape)}; the model takes {len(channels)} channel(s) "
        f"({', '.join(channels)}) as {wanted}"
    )


def check_metadata(source: Path, metadata: Mapping[str, Any]) -> None:
    """UserError unless the affine and the attributes, which the prediction gets too, are sound."""
    if metadata["affine"] is not None and not np.isfinite(metadata["affine"]).all():
        raise UserError(
            f"{source}: its affine holds values that are NaN or infinite, and the prediction would "
            "get it too; write the header of the file anew"
        )
    for attributes in (metadata["attributes"], metadata["file_attributes"]):
        for name, value in attributes.items():
            if not all(is_utf8(text) for text in (name, *np.ravel(np.asarray(value, object)))):
                raise UserError(
                    f"{source}: its attribute {name!r} is no text in UTF-8, and the prediction "
                    "would get it too; write the attribute anew, or delete it"
                )


def is_utf8(value: Any) -> bool:
    """Whether a text can be written; h5py reads bytes that are no UTF-8 as lone surrogates."""
    try:
        str.encode(value, "utf-8") if isinstance(value, str) else b""
    except UnicodeEncodeError:
        return False
    return True


@contextlib.contextmanager
def one_sentence(source: Path, what: str) -> Iterator[None]:
    """Turn whatever a library raises on an odd file into one UserError that names the file."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{source}: {what} ({type(error).__name__}: {reason})") from error


def check_finite(x: np.ndarray, where: str, axes: str) -> None:
    """UserError if `x` holds values that are NaN or infinite; `axes` are its own, as "D, H, W"."""
    if bad := int(np.size(x) - np.isfinite(x).sum()):
        first = tuple(int(n) for n in np.argwhere(~np.isfinite(x))[0])
        raise UserError(
            f"{where}: found {bad} values that are NaN or infinite, the first at [{axes}] = "
            f"{first}; expected finite values: repair or fill them"
        )


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
    flat = spec.shape[0] == 1
    if tile and (len(tile) != 3 or min(tile) < 1 or (flat and tile[0] != 1)):
        raise UserError(
            f"predict.tile={tile}; expected () for the whole volume at once, or three positive "
            f"numbers (D, H, W){', D = 1 for 2D fields' if flat else ''}, e.g. {tuple(spec.shape)}"
        )
    return tile
