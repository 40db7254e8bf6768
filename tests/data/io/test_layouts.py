"""Whatever the libraries can write of numbers is read back as they read it themselves, in whole and
in part: every codec, filter, order, byte order and scale.
"""

import h5py
import nibabel
import numcodecs
import numpy as np
import pytest
import zarr
from zarr.codecs import numcodecs as codecs3

from jaxvol.data.io import files

INDEX = (slice(1, None, 3), 2, slice(0, 6))
PACKED = {
    "gzip": numcodecs.GZip(3),
    "zlib": numcodecs.Zlib(3),
    "bz2": numcodecs.BZ2(3),
    "lzma": numcodecs.LZMA(),
    "zstd": numcodecs.Zstd(3),
    "lz4": numcodecs.LZ4(),
    "blosc": numcodecs.Blosc("lz4", shuffle=2),
    "none": None,
}


def volume(dtype="f4"):
    return np.random.default_rng(0).integers(0, 50, (7, 6, 9)).astype(dtype)


def check(path, key, expected):
    read = files.read(str(path), key)
    assert read.dtype == expected.dtype
    np.testing.assert_array_equal(read, expected)
    for index in (INDEX, (3,), (slice(2, 5), slice(None), -1), (slice(5, 5),)):
        np.testing.assert_array_equal(files.read(str(path), key, index), expected[index])


@pytest.mark.parametrize("codec", PACKED)
@pytest.mark.parametrize("dtype", ["<f4", ">f8", "<i2", "|u1", "|b1"])
def test_zarr_2_compressors_orders_and_separators(codec, dtype, tmp_path):
    order, separator = ("F", "/") if dtype == ">f8" else ("C", ".")
    root = zarr.open_group(str(tmp_path / "a.zarr"), mode="w", zarr_format=2)
    node = root.create_array(
        "x",
        shape=(7, 6, 9),
        chunks=(3, 6, 4),
        dtype=dtype,
        order=order,
        compressors=PACKED[codec],
        chunk_key_encoding={"name": "v2", "separator": separator},
        fill_value=1,
    )
    node[...] = volume(dtype)
    check(tmp_path / "a.zarr", "x", node[...])


FILTERS = {
    "delta": [numcodecs.Delta("<f4", astype="<i2")],
    "scale": [numcodecs.FixedScaleOffset(0, 1, "<f4", "u1")],
    "quantize": [numcodecs.Quantize(2, "<f4", "<f4")],
    "cast": [numcodecs.AsType("<i4", "<f4")],
    "bits": [numcodecs.BitRound(6)],
    "shuffle": [numcodecs.Shuffle(4)],
    "checked": [numcodecs.CRC32(), numcodecs.Adler32()],
    "packed twice": [numcodecs.Zlib(), numcodecs.BZ2()],
    "all": [numcodecs.Delta("<f4", astype="<i2"), numcodecs.Zlib(), numcodecs.Fletcher32()],
}


@pytest.mark.parametrize("name", FILTERS)
def test_zarr_2_filters(name, tmp_path):
    node = zarr.create_array(
        str(tmp_path / "a.zarr"),
        shape=(7, 6, 9),
        chunks=(3, 6, 4),
        dtype="<f4",
        filters=FILTERS[name],
        compressors=numcodecs.Zstd(),
        zarr_format=2,
    )
    node[...] = volume()
    check(tmp_path / "a.zarr", "", node[...])


LAYOUTS = {
    "plain": {"compressors": None},
    "big": {"serializer": zarr.codecs.BytesCodec(endian="big")},
    "gzip": {"compressors": zarr.codecs.GzipCodec()},
    "zstd": {"compressors": zarr.codecs.ZstdCodec(checksum=True)},
    "blosc": {"compressors": zarr.codecs.BloscCodec()},
    "nested": {"compressors": [codecs3.Zlib(), codecs3.LZMA(), zarr.codecs.Crc32cCodec()]},
    "transposed": {"filters": [zarr.codecs.TransposeCodec(order=(2, 0, 1))]},
    "delta": {"filters": [codecs3.Delta(dtype="<f4", astype="<i4")]},
    "transposed delta": {
        "filters": [zarr.codecs.TransposeCodec(order=(1, 2, 0)), codecs3.Delta(dtype="<f4")]
    },
    "scale": {"filters": [codecs3.FixedScaleOffset(scale=2, offset=1, astype="<u2")]},
    "shuffle": {"compressors": [codecs3.Shuffle(), codecs3.LZ4()]},
    "shards": {"chunks": (3, 2, 3), "shards": (6, 6, 6)},
    "shards gzip": {
        "chunks": (3, 2, 3),
        "shards": (6, 6, 6),
        "compressors": zarr.codecs.GzipCodec(),
        "filters": [zarr.codecs.TransposeCodec(order=(2, 0, 1))],
    },
    "names": {"chunk_key_encoding": {"name": "default", "separator": "."}},
    "old names": {"chunk_key_encoding": {"name": "v2", "separator": "/"}},
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_zarr_3_codecs_and_shards(name, tmp_path):
    node = zarr.create_array(
        str(tmp_path / "a.zarr"),
        **{"shape": (7, 6, 9), "chunks": (3, 6, 4), "dtype": "f4"} | LAYOUTS[name],
    )
    node[...] = volume()
    check(tmp_path / "a.zarr", "", node[...])


def test_zarr_fills_what_is_missing(tmp_path):
    for version, shards in ((2, None), (3, None), (3, (6, 6, 8))):
        path = tmp_path / f"{version}-{shards is None}.zarr"
        node = zarr.create_array(
            str(path),
            shape=(7, 6, 9),
            chunks=(3, 6, 4),
            shards=shards,
            dtype="f4",
            fill_value=2.5,
            zarr_format=version,
        )
        node[:2, :, :3] = volume()[:2, :, :3]
        check(path, "", node[...])
    node = zarr.create_array(str(tmp_path / "0.zarr"), shape=(), dtype="f8")
    node[...] = 3.5
    assert files.read(str(tmp_path / "0.zarr")) == 3.5


HDF5 = {
    "none": {},
    "deflate": {"compression": "gzip"},
    "shuffled": {"compression": "gzip", "shuffle": True, "fletcher32": True},
    "lzf": {"compression": "lzf", "shuffle": True},
    "scaled": {"scaleoffset": 0},
}


@pytest.mark.parametrize("name", HDF5)
@pytest.mark.parametrize("dtype", ["<f4", ">f8", ">i2", "u1"])
def test_hdf5_filters(name, dtype, tmp_path):
    if name == "scaled" and "f" in dtype:
        pytest.skip("h5py scales floats to a number of digits")
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("x", data=volume(dtype), chunks=(3, 4, 9), **HDF5[name])
        file.create_dataset("grown", data=volume(dtype), chunks=True, maxshape=(None,) * 3)
    for key in ("x", "grown"):
        check(tmp_path / "a.h5", key, volume(dtype))


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
@pytest.mark.parametrize("scale", [(None, None), (2.0, -1.0), (1e-3, 0.5)])
@pytest.mark.parametrize("dtype", ["<i2", ">f4", "u1"])
def test_nifti_scales_and_orders(suffix, scale, dtype, tmp_path):
    for name, kind in (("1", nibabel.Nifti1Image), ("2", nibabel.Nifti2Image)):
        header = kind.header_class(endianness=">" if dtype[0] == ">" else "<")
        image = kind(volume(dtype), np.diag([1.0, 2, 3, 1]), header)
        image.header.set_data_dtype(dtype)
        image.header.set_slope_inter(*scale)
        note = nibabel.nifti1.Nifti1Extension("comment", b"a long note " * 100)
        image.header.extensions.append(note)
        path = tmp_path / f"{name}{suffix}"
        nibabel.save(image, path)
        check(path, "", np.asarray(nibabel.load(path).dataobj))
        metadata = files.metadata(str(path))
        np.testing.assert_array_equal(metadata["affine"], nibabel.load(path).affine)
        files.write(str(tmp_path / f"twin{suffix}"), "", volume(), like=str(path))
        twin = nibabel.load(tmp_path / f"twin{suffix}")
        assert isinstance(twin, kind)
        assert twin.header.extensions[0].get_content() == b"a long note " * 100
