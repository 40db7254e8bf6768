"""What a run leaves on disk: rows that survive a kill, event files read back by hand, pictures,
status.
"""

import io
import json
import os
import struct
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image
from tensorboardX.proto import event_pb2

from jaxvol.config import base
from jaxvol.runtime import rows, writer


def open_at(workdir, step=-1, total=100):
    """An open writer for a run that goes on from `step`."""
    log = writer.open_run(workdir, base.common().lock(), True)
    log.resume(step, total)
    return log


def events(workdir):
    """Events of all TensorBoard files, oldest first: length [8], its crc [4], data, crc [4] per
    record.
    """
    records = []
    for file in sorted((workdir / "tensorboard").iterdir(), key=lambda f: f.name.split(".")[-1]):
        data, at = file.read_bytes(), 0
        while at < len(data):
            (size,) = struct.unpack_from("<Q", data, at)
            records.append(event_pb2.Event.FromString(data[at + 12 : at + 12 + size]))
            at += size + 16
    return records


def plotted(workdir):
    return [
        (v.tag, e.step, v.simple_value)
        for e in events(workdir)
        for v in e.summary.value
        if v.HasField("simple_value")
    ]


def read_rows(workdir):
    lines = (workdir / "metrics.csv").read_text().splitlines()
    assert lines[0] == "step,tag,value"
    return [line.split(",") for line in lines[1:]]


def test_scalars_round_trip_through_csv_and_tensorboard(tmp_path):
    values = {
        f"val/{i}": np.float32(x)
        for i, x in enumerate(np.random.default_rng(0).lognormal(0, 20, 50))
    }
    log = open_at(tmp_path)
    log.scalars(3, values)
    # flushed, not closed
    assert {tag: np.float32(value) for _, tag, value in read_rows(tmp_path)} == values
    log.scalars(4, {"train/net/loss": float("nan")})
    log.perf(4, {"perf/steps_per_sec": 2.5, "data_wait": 0.25})
    log.close()
    assert read_rows(tmp_path)[-1] == ["4", "train/net/loss", "nan"]
    assert {tag: np.float32(value) for tag, step, value in plotted(tmp_path) if step == 3} == values
    timing = {tag: value for tag, _, value in plotted(tmp_path) if tag.startswith("perf/")}
    assert timing["perf/steps_per_sec"] == 2.5 and timing["perf/data_wait"] == 0.25
    assert 1e7 < timing["perf/host_memory"] < 1e12
    perf = [line.split(",") for line in (tmp_path / "perf.csv").read_text().splitlines()]
    assert perf[0] == ["step", "tag", "value", "time"] and perf[1][:3] == [
        "4",
        "perf/steps_per_sec",
        "2.5",
    ]
    assert not any("perf/" in row[1] for row in read_rows(tmp_path))


def test_cut_keeps_rows_up_to_the_step_and_drops_a_torn_line(tmp_path):
    whole = 'step,tag,value\n0,val/rmse,1\n10,"dice/left, kidney",0.5\n10,val/rmse,0.123456789\n'
    file = tmp_path / "metrics.csv"
    for rest in (
        "",
        "11,val/rmse,0.5\n20,val/rmse,0.1\n",
        "10,val/rmse,0.1234",
        "1",
        '10,"dice/le',
        "10,val/rm\n",
        "\n",
        "\x00\x00",
    ):
        file.write_text(whole + rest)
        rows.cut(tmp_path, 10)
        assert file.read_text() == whole, rest
    (tmp_path / "perf.csv").write_text(
        "step,tag,value,time\n30,perf/steps_per_sec,2,5.0\n40,perf/st"
    )
    rows.cut(tmp_path, 0)
    assert file.read_text() == whole.split("10,")[0]
    assert (
        tmp_path / "perf.csv"
    ).read_text() == "step,tag,value,time\n30,perf/steps_per_sec,2,5.0\n"
    rows.cut(tmp_path, -1)
    assert file.read_text() == "step,tag,value\n"
    file.write_text("step,ta")  # killed while the header was written
    rows.cut(tmp_path, 10)
    assert file.read_text() == "step,tag,value\n"


def test_a_resumed_run_writes_what_an_undisturbed_one_does(tmp_path):
    def go(log, start, stop):
        for step in range(start, stop):
            log.scalars(step, {"train/net/loss": 1 / (1 + step), "val/rmse": np.sqrt(step)})

    whole = open_at(tmp_path / "whole")
    go(whole, 0, 9)
    killed = open_at(tmp_path / "killed")
    go(killed, 0, 7)
    killed.close()
    with (tmp_path / "killed" / "metrics.csv").open("a") as file:
        file.write("7,val/r")
    resumed = open_at(tmp_path / "killed", step=4)
    go(resumed, 5, 9)
    resumed.close()
    assert (tmp_path / "killed" / "metrics.csv").read_bytes() == (
        tmp_path / "whole" / "metrics.csv"
    ).read_bytes()
    starts = [
        e.step
        for e in events(tmp_path / "killed")
        if e.session_log.status == event_pb2.SessionLog.START
    ]
    # TensorBoard hides what was written at 5 and later before that
    assert starts == [0, 5]
    assert [step for _, step, _ in plotted(tmp_path / "killed")] == sorted(
        2 * [*range(7)]
    ) + sorted(2 * [*range(5, 9)])


def test_pictures_and_text(tmp_path):
    log = open_at(tmp_path)
    picture = np.random.default_rng(0).integers(0, 255, (4, 6, 3), np.uint8)
    figure = Figure(figsize=(1, 0.5), dpi=40)
    log.images(7, {"slices": picture, "images/spectra/power": figure})
    log.text("net/<b>  1 & 2", tag="parameters")
    log.close()
    np.testing.assert_array_equal(
        np.asarray(Image.open(tmp_path / "images" / "slices_00000007.png")), picture
    )
    assert Image.open(tmp_path / "images" / "spectra_power_00000007.png").size == (40, 20)
    values = {v.tag: v for e in events(tmp_path) for v in e.summary.value}
    seen = Image.open(io.BytesIO(values["images/slices"].image.encoded_image_string))
    np.testing.assert_array_equal(np.asarray(seen), picture)
    assert "images/spectra/power" in values
    text = (
        next(v for tag, v in values.items() if tag.startswith("parameters"))
        .tensor.string_val[0]
        .decode()
    )
    assert text == "<pre>net/&lt;b&gt;  1 &amp; 2</pre>"
    with pytest.raises(ValueError, match="uint8"):
        writer.pixels(np.zeros((4, 6, 3)))


def test_console_prints_one_line_per_log_when_it_is_no_terminal(tmp_path, capsys):
    (tmp_path / "metrics.csv").write_text("step,tag,value\n10,val/rmse,1\n")
    log = open_at(tmp_path, step=10, total=40)
    for step in range(11, 31):
        log.advance(step)
    log.scalars(30, {"train/gen/mse": 1.0, "train/gen/loss": 0.25, "train/disc/loss": 0.5})
    lines = capsys.readouterr().err.splitlines()
    assert (
        len(lines) == 1
        and lines[0].startswith("step 30/40  gen/loss 0.25  disc/loss 0.5")
        and "ETA" in lines[0]
    )


def test_the_bar_follows_on_a_terminal(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    log = open_at(tmp_path, step=10, total=40)
    log.advance(11)
    log.scalars(40, {"train/net/loss": 0.125})
    log.advance(40)
    assert log.progress.bar.n == 40
    log.close()
    printed = capsys.readouterr().err
    assert "40/40" in printed and "net/loss 0.125" in printed and "step/s" in printed


def test_status_is_replaced_whole(tmp_path, monkeypatch):
    log = open_at(tmp_path, step=5, total=50)
    status = tmp_path / "status.json"
    assert {**json.loads(status.read_text()), "time": ""} == {
        "state": "running",
        "step": 5,
        "total": 50,
        "checkpoint": 5,
        "time": "",
    }
    log.status(
        {
            "state": "saved",
            "step": np.int32(7),
            "total": 50,
            "best": {"value": float("nan"), "other": jnp.float32(0.5)},
        }
    )
    assert json.loads(status.read_text())["best"] == {"value": None, "other": 0.5}
    before = status.read_bytes()

    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        log.status({"state": "finished", "step": 50, "total": 50})
    assert status.read_bytes() == before


def test_parameter_table_counts_complex_twice():
    params = {
        "net": {
            "block_0": {
                "spectral": {"w": np.zeros((3, 5), np.complex64)},
                "bias": np.zeros(7, np.float32),
            },
            "scale": np.zeros(2, np.float32),
        },
        "weights": jax.ShapeDtypeStruct((4,), np.float64),
    }
    rows = [line.split() for line in writer.table(params).splitlines()[1:]]
    assert [(name, n) for name, n, _ in rows] == [
        ("net/block_0", "37"),
        ("net", "2"),
        ("weights", "4"),
        ("total", "43"),
    ]
    big = writer.table(
        {"net": {"dense": {"kernel": jax.ShapeDtypeStruct((1024, 512), np.float32)}}}
    ).splitlines()
    assert big[-1].split() == ["total", "524,288", "2.000"]


def test_other_processes_write_nothing(tmp_path):
    log = writer.open_run(tmp_path / "run", base.common(), False)
    assert log.resume(3, 10, "id") == "id"
    log.scalars(1, {"train/net/loss": 1.0})
    log.perf(1, {"steps_per_sec": 1.0})
    log.images(1, {"slices": np.zeros((2, 2, 3), np.uint8)})
    log.text("text")
    log.advance(2)
    log.status({"state": "failed"})
    log.close()
    assert list(tmp_path.iterdir()) == []
