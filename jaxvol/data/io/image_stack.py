"""Stacks of fringe images in users' folders: sample_XXXX/bucket_00 .. bucket_15 (.bmp or .png,
grey, 8 or 16 bits), and a height map.

Bucket number 4 w + s has wavelength w and phase step s.  `ground_truth.npy`, where there is one,
holds the height of every pixel.  Pillow decodes the images and jaxvol/data/io/files.py reads the
array, neither of which executes anything.  An image may claim at most MAX_PIXELS pixels, which are
looked at before they are decoded.  Every fault is one FileError (a UserError) that names the file,
what was found, what was expected and what to do.
"""

from __future__ import annotations

import os
import re
import warnings

import numpy as np
from PIL import Image

from jaxvol.data.io import files
from jaxvol.runtime.regular_files import FileError, open_regular

ENDINGS = (".bmp", ".png")
# Pillow tries no other decoder, whatever the file calls itself
FORMATS = ("BMP", "PNG")
# Pillow's modes of one grey channel -> their white
LEVELS = {"L": 255, "I;16": 65535, "I;16B": 65535, "I": 65535}
MAX_PIXELS = 1 << 26
TRUTH = "ground_truth.npy"


def samples(folder: str) -> list[str]:
    """Names of the sample folders in `folder`, in order.  FileError when there is no such folder,
    or none in it.
    """
    root = os.path.expanduser(folder)
    try:
        names = sorted(
            name
            for name in os.listdir(root)
            if re.fullmatch(r"sample_\d+", name) and os.path.isdir(os.path.join(root, name))
        )
    except OSError as error:
        raise FileError(
            f"{folder}: {error.strerror}; expected a folder with sample_0000, sample_0001, ...: "
            "check data.folder"
        ) from None
    if not names:
        raise FileError(
            f"{folder}: found no folder sample_0000, sample_0001, ...; expected one per stack of "
            "images: check data.folder"
        )
    return names


def read(folder: str, count: int) -> tuple[np.ndarray, np.ndarray | None]:
    """(images [H, W, count] float64 scaled to 0 .. 255, heights [H, W] float64, None without a
    ground truth) of one sample folder.
    """
    folder = os.path.expanduser(folder)
    images, first = [], ""
    for number in range(count):
        path = find(folder, number, count)
        pixels = image(path)
        if images and pixels.shape != images[0].shape:
            raise FileError(
                f"{path}: found {size(pixels)} pixels; expected {size(images[0])}, as in {first}: "
                "all images of a stack show the same pixels, crop or record them alike"
            )
        images.append(pixels)
        first = first or path
    return np.stack(images, -1), truth(os.path.join(folder, TRUTH), images[0].shape)


def find(folder: str, number: int, count: int) -> str:
    """The file of one bucket; FileError unless there is exactly one."""
    paths = [os.path.join(folder, f"bucket_{number:02d}{ending}") for ending in ENDINGS]
    there = [path for path in paths if os.path.isfile(path)]
    if len(there) == 1:
        return there[0]
    wanted = f"bucket_{number:02d}{' or '.join(ENDINGS)}"
    problem = f"both {' and '.join(map(os.path.basename, there))}" if there else f"no {wanted}"
    remedy = "remove one of them" if there else "add it, or leave the sample out"
    raise FileError(
        f"{folder}: found {problem}; expected one file for each of bucket_00 .. "
        f"bucket_{count - 1:02d}: {remedy}"
    )


def image(path: str) -> np.ndarray:
    """One grey image, [H, W] float64 scaled to 0 .. 255; FileError for anything else."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with open_regular(path) as source, Image.open(source, formats=FORMATS) as file:
                mode, pixels = file.mode, file.width * file.height
                if mode in LEVELS and pixels <= MAX_PIXELS:
                    file.load()
                    values = np.array(file, np.float64)
    # decoders raise anything on corrupt bytes, from OSError to struct.error
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        raise FileError(
            f"{path}: cannot be read as BMP or PNG ({type(error).__name__}: {reason}); the file is "
            "truncated, corrupt or of another format: record it again or leave the sample out"
        ) from None
    if mode not in LEVELS:
        what = "black and white" if mode == "1" else "a colour image"
        raise FileError(
            f"{path}: found {what} (mode {mode}); expected one grey channel of 8 or 16 bits: "
            "convert it to greyscale"
        )
    if pixels > MAX_PIXELS:
        raise FileError(
            f"{path}: found {pixels} pixels; expected at most {MAX_PIXELS}: cut the stack into "
            "smaller fields"
        )
    return values * (255 / LEVELS[mode])


def truth(path: str, shape: tuple[int, int]) -> np.ndarray | None:
    """Heights [H, W] of the pixels; FileError for another shape or values that are not finite."""
    if not os.path.exists(path):
        return None
    height = np.asarray(files.read(path), np.float64)
    if height.shape != shape:
        raise FileError(
            f"{path}: found shape {height.shape}; expected {shape}, rows and columns of the "
            "images: crop it like them"
        )
    finite = np.isfinite(height)
    if not finite.all():
        place = tuple(int(i) for i in np.argwhere(~finite)[0])
        raise FileError(
            f"{path}: found {np.sum(~finite)} values that are not finite, the first at [row, "
            f"column] = {place}; expected the height of every pixel: fill them, or remove the file "
            "(the sample is then solved and not scored)"
        )
    return height


def size(image: np.ndarray) -> str:
    """Width x height, as image programs say it."""
    return f"{image.shape[1]} x {image.shape[0]}"
