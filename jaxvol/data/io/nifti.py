"""NIfTI images, .nii and .nii.gz.

A file may claim a place for its voxels that lies behind text of its own: at most 1 MiB and sixteen
times the file.  From .nii only the piece that is asked for is read; .nii.gz is unpacked to the end,
because only there is the checksum, but no more is kept than the header declares, and no more than
1 MiB and another file's worth may follow the voxels.  nibabel never sees the packed stream or more
of the text than lies before the voxels: it would read whatever length an extension claims.
"""

from __future__ import annotations

import io
import os
from typing import Any, BinaryIO

import numpy as np

from jaxvol.data.io.opened import SLACK, Opened, array_bytes, deflate_fault, whole
from jaxvol.data.io.unpack import PIECE, Unpacked
from jaxvol.runtime.regular_files import open_regular

FIRST = 540  # bytes that hold the header of either version
MAX_TEXT_RATIO = 16  # bytes of extensions for each byte of the file
CIFTI = range(3000, 3100)  # intents of matrices, which are no volumes


def open_nifti(path: str) -> Opened:
    from nibabel.arrayproxy import ArrayProxy
    from nibabel.volumeutils import apply_read_scaling

    header = read_header(path)
    shape, dtype = tuple(int(n) for n in header.get_data_shape()), header.get_data_dtype()
    affine, offset = header.get_best_affine(), int(header.get_data_offset())
    stored, packed = os.path.getsize(path), path.lower().endswith(".gz")
    expected = array_bytes(shape, dtype)
    if packed:
        fault = deflate_fault(offset + expected, stored)
        fault = fault and f"declares shape {shape} of {dtype}: {fault}"
    else:
        fault = (
            ""
            if stored - offset >= expected
            else (
                f"declares shape {shape} of {dtype} ({expected} bytes) but {stored - offset} bytes "
                "are stored"
            )
        )

    def read(key: str, index: Any) -> np.ndarray:
        if not packed:
            voxels = ArrayProxy(path, header)
            return np.asarray(voxels[index] if index else voxels)
        with open_regular(path) as file:
            voxels = _unpack_voxels(file, offset, expected, stored)
        voxels = np.frombuffer(voxels, dtype).reshape(shape, order="F")
        slope, inter = header.get_slope_inter()
        slope, inter = 1.0 if slope is None else slope, 0.0 if inter is None else inter
        return apply_read_scaling(voxels, np.asanyarray(slope), np.asanyarray(inter))

    def metadata(key: str) -> dict[str, Any]:
        spacing = tuple(float(z) for z in header.get_zooms()[:3])
        return {"affine": np.array(affine), "spacing": spacing}

    return Opened(
        arrays={"": (shape, dtype)},
        fault=lambda key: fault,
        chunks=whole,
        read=read,
        metadata=metadata,
        close=lambda: None,
        partial=not packed,
        keyed=False,
    )


def read_header(path: str, text: bool = False) -> Any:
    """nibabel's header of the image, of either version; its extensions only with `text`.

    Raises ValueError for a file that is no single NIfTI image, or whose voxels should begin
    further behind than a file of this size can say.
    """
    import nibabel

    limit = SLACK + MAX_TEXT_RATIO * os.path.getsize(path)
    with open_regular(path) as file:
        stream = _stream(file, path)
        start = _take(stream, FIRST)
        for kind in (nibabel.Nifti1Header, nibabel.Nifti2Header):
            if kind.may_contain_header(start):
                break
        else:
            raise ValueError("no NIfTI header")
        length = kind.template_dtype.itemsize
        # without the mark of extensions nibabel reads nothing behind the header
        header = kind.from_fileobj(io.BytesIO(start[:length]))
        if not kind.is_single or int(header["intent_code"]) in CIFTI:
            raise ValueError("a pair of files or a CIFTI matrix, not a NIfTI image")
        offset = int(header.get_data_offset())
        if not 0 <= offset <= limit:
            raise ValueError(
                f"its voxels should begin at byte {offset}; expected at most {limit} for a file "
                "of this size"
            )
        if text:
            start += _take(stream, offset - len(start))
            header = kind.from_fileobj(io.BytesIO(start[: max(length, offset)]))
    return header


def _stream(file: BinaryIO, path: str) -> Any:
    return Unpacked("gzip", file) if path.lower().endswith(".gz") else file


def _take(stream: Any, size: int) -> bytes:
    """The next `size` bytes of a stream, fewer at its end."""
    pieces = []
    while size > 0 and (piece := stream.read(min(size, PIECE))):
        pieces.append(piece)
        size -= len(piece)
    return b"".join(pieces)


def _unpack_voxels(file: BinaryIO, offset: int, expected: int, stored: int) -> bytearray:
    """The bytes of the voxels; ValueError when the stream has fewer, or more than padding behind
    them.
    """
    stream, voxels, tail = Unpacked("gzip", file), bytearray(), 0
    while offset > 0 and (piece := stream.read(min(offset, PIECE))):
        offset -= len(piece)
    while len(voxels) < expected and (piece := stream.read(min(expected - len(voxels), PIECE))):
        voxels += piece
    if len(voxels) < expected:
        raise ValueError(f"declares {expected} bytes of voxels but {len(voxels)} are stored")
    # to the very end: only there is the checksum
    while piece := stream.read(PIECE):
        tail += len(piece)
        if tail > SLACK + stored:
            raise ValueError(f"more than {tail} bytes follow the {expected} that it declares")
    return voxels


def write_nifti(path: str, key: str, array: np.ndarray, meta: dict[str, Any], like: str) -> None:
    import nibabel

    if not like:
        nibabel.save(nibabel.Nifti1Image(array, np.eye(4)), path)
        return
    # the header is copied: codes, units and spacing stay
    header = read_header(like, text=True)
    second = isinstance(header, nibabel.Nifti2Header)
    kind = nibabel.Nifti2Image if second else nibabel.Nifti1Image
    image = kind(array, header.get_best_affine(), header)
    image.set_data_dtype(np.float32)
    nibabel.save(image, path)
