"""The bar, lines in its place, and messages that never share a line with it."""

import io
import sys
import time

import pytest
from absl import logging

from jaxvol.runtime import console, quiet


class Terminal(io.StringIO):
    """Standard error that says it is a terminal."""

    def isatty(self):
        return True


def screen(written):
    """The lines of a terminal that was written to: a carriage return goes back to the line's
    begin, and what is written there replaces what stood there.
    """
    lines = [[]]
    column = 0
    for c in written.replace("\x1b[A", ""):
        if c == "\n":
            lines.append([])
            column = 0
        elif c == "\r":
            column = 0
        else:
            lines[-1][column : column + 1] = [c]
            column += 1
    return ["".join(line).rstrip() for line in lines]


def test_messages_stand_above_the_bar_and_never_in_its_line(monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setattr(sys, "stdout", terminal)
    quiet.libraries()
    progress = console.Progress(0, 100)
    progress.bar.mininterval = 0
    handler = logging.get_absl_handler().python_handler
    for step in range(1, 6):
        progress.advance(step)
        progress.losses(step, "net/loss 0.5")
        handler.stream.write(f"val {step}\n")
        console.say(f"told {step}")
    progress.close()
    lines = [line for line in screen(terminal.getvalue()) if line]
    messages = [line for line in lines if line.startswith(("val", "told"))]
    assert messages == [f"{word} {step}" for step in range(1, 6) for word in ("val", "told")]
    assert sum("%|" in line for line in lines) == 1 and "5/100" in lines[-1]


@pytest.mark.parametrize("terminal", [True, False])
def test_compilation_is_not_in_the_time_that_is_left(monkeypatch, terminal):
    out = Terminal() if terminal else io.StringIO()
    monkeypatch.setattr(sys, "stderr", out)
    clock = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(time, "time", lambda: clock[0])
    progress = console.Progress(10, 110)
    progress.bar._time = lambda: clock[0]
    clock[0] += 600.0  # compilation
    progress.advance(11)
    for step in range(12, 61):
        clock[0] += 1.0
        progress.advance(step)
        progress.losses(step, "net/loss 0.5")
    # 50 updates are left, one second each
    text = out.getvalue().replace("\r", "\n").rstrip("\n").splitlines()[-1]
    assert "00:50" in text.split("ETA" if not terminal else "<")[1]
    progress.close()


def test_where_there_is_no_terminal_a_line_per_cent_is_printed(monkeypatch):
    out = io.StringIO()
    monkeypatch.setattr(sys, "stderr", out)
    progress = console.Progress(0, 5000)
    for step in range(1, 5001):
        progress.advance(step)
        progress.losses(step, "net/loss 0.5")
    lines = out.getvalue().splitlines()
    assert "\r" not in out.getvalue() and len(lines) == 101 or len(lines) == 100
    assert lines[0].startswith("step 50/5000") and lines[-1].startswith("step 5000/5000")
