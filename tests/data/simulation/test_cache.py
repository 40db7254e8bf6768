"""The cache of simulated boxes: damaged ones are made again, and none is ever half there."""

import tempfile
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from absl import logging

from jaxvol.data import cosmology as boxes
from jaxvol.data.simulation import cache
from jaxvol.types import UserError
from tests.data.test_cosmology import every_box, make_config, same


def test_damaged_and_missing_boxes_are_made_again(tmp_path, monkeypatch):
    config = make_config(tmp_path)
    first = every_box(boxes.source(config))
    files = sorted(tmp_path.glob("cosmology-*/*.npz"))
    assert [f.name for f in files] == [
        "test-00000.npz",
        "train-00000.npz",
        "train-00001.npz",
        "val-00000.npz",
    ]
    whole = files[1].read_bytes()
    middle = len(whole) // 3
    warnings = []
    monkeypatch.setattr(logging, "warning", lambda message, *args: warnings.append(message % args))
    for damaged in (
        whole[:middle],
        whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :],
        b"",
    ):
        files[1].write_bytes(damaged)
        files[2].unlink()
        warnings.clear()
        assert same(every_box(boxes.source(config)), first)
        assert len(warnings) == 1 and "train-00000.npz is damaged" in warnings[0]
    np.savez(
        files[0], input=np.zeros((4, 4, 4), np.float32), target=np.zeros((4, 4, 4), np.float32)
    )
    assert (
        same(every_box(boxes.source(config)), first) and "found float32 (4, 4, 4)" in warnings[-1]
    )
    stamps = [f.stat().st_mtime_ns for f in files]
    boxes.source(config)
    assert stamps == [f.stat().st_mtime_ns for f in files]  # a sound cache is not written again


def _save_many(path):
    for value in range(40):
        cache.save(
            path,
            input=np.full((8, 8, 8), value, np.float32),
            target=np.full((8, 8, 8), value, np.float32),
        )


def test_a_box_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "train-00000.npz"
    _save_many(path)
    with ThreadPoolExecutor(2) as pool:
        writers = [pool.submit(_save_many, path) for _ in range(2)]
        while not all(writer.done() for writer in writers):
            box = cache.load(path, 8)
            assert np.ptp(box["input"]) == 0 and np.array_equal(box["input"], box["target"])
        assert [writer.result() for writer in writers] == [None, None]
    assert [f.name for f in tmp_path.iterdir()] == [path.name]

    def full_disk(path, **fields):
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez", full_disk)
    with pytest.raises(UserError, match="train-00001.npz cannot be written .*No space left"):
        cache.save(tmp_path / "train-00001.npz", input=np.zeros(1), target=np.zeros(1))
    assert [f.name for f in tmp_path.iterdir()] == [path.name]


def test_cache_folder_falls_back_to_the_temporary_folder_and_says_so(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("not a folder")
    warnings = []
    monkeypatch.setattr(logging, "warning", lambda message, *args: warnings.append(message % args))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    assert cache.folder(str(tmp_path / "file" / "cache")) == tmp_path / "jaxvol"
    assert (
        len(warnings) == 1
        and "cannot be written" in warnings[0]
        and str(tmp_path / "jaxvol") in warnings[0]
    )
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache.folder("~/boxes") == tmp_path / "boxes"
