"""Files are replaced whole or not at all, and leave nothing beside them."""

import os
import stat

import numpy as np
import pytest

from jaxvol.runtime import atomic


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_text_and_bytes_take_the_place_of_the_old_file(tmp_path):
    path = tmp_path / "new" / "a.json"
    atomic.write_text(path, "é")
    assert path.read_bytes() == "é".encode() and stat.S_IMODE(path.stat().st_mode) == 0o644
    atomic.write_bytes(path, b"\x00\xff")
    assert path.read_bytes() == b"\x00\xff" and names(path.parent) == ["a.json"]


def test_a_kill_before_the_rename_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "a.txt"
    atomic.write_text(path, "old")

    def killed(*_):
        assert path.read_text() == "old"
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        atomic.write_text(path, "new")
    assert path.read_text() == "old" and names(tmp_path) == ["a.txt"]


def test_the_content_is_on_the_disk_before_the_name_changes(tmp_path, monkeypatch):
    order, fsync, replace = [], os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda fd: order.append("fsync") or fsync(fd))
    monkeypatch.setattr(os, "replace", lambda a, b: order.append("replace") or replace(a, b))
    atomic.write_text(tmp_path / "a.txt", "text")
    assert order == ["fsync", "replace"]


def test_a_library_that_fails_half_way_changes_nothing(tmp_path):
    path = tmp_path / ("long" * 60 + ".npz")  # 244 characters: no room for a prefix
    with atomic.replacing(path) as temporary:
        assert temporary.suffix == ".npz" and temporary.parent == tmp_path
        np.savez(temporary, x=np.arange(3))
    with pytest.raises(ZeroDivisionError), atomic.replacing(path) as temporary:
        temporary.write_bytes(b"half")
        _ = 1 / 0
    np.testing.assert_array_equal(np.load(path, allow_pickle=False)["x"], [0, 1, 2])
    assert names(tmp_path) == [path.name]


def test_folders_replace_folders_and_nothing_else(tmp_path):
    store, file = tmp_path / "a.zarr", tmp_path / "b"
    for content in ("old", "new"):
        with atomic.replacing(store) as temporary:
            temporary.mkdir()
            (temporary / content).write_text(content)
    assert names(store) == ["new"]
    with pytest.raises(OSError):
        atomic.write_text(store, "a file in the place of a folder")
    file.write_text("a file")
    with pytest.raises(OSError), atomic.replacing(file) as temporary:
        temporary.mkdir()
    assert names(store) == ["new"] and file.read_text() == "a file"
    assert names(tmp_path) == ["a.zarr", "b"]
