"""The lifeline of several processes, without JAX: plain processes that end in every way, and what
the others make of it.
"""

import signal
import socket
import subprocess
import sys
import time

import pytest

from tests import ROOT

MEMBER = """
import os, sys, time, types
# without the package's own imports: a second less per process
package = types.ModuleType("jaxvol"); package.__path__ = ["jaxvol"]; sys.modules["jaxvol"] = package
room = types.ModuleType("jaxvol.runtime")
room.__path__ = ["jaxvol/runtime"]; sys.modules["jaxvol.runtime"] = room
monitoring = types.ModuleType("jaxvol.runtime.monitoring")
monitoring.UNFINISHED = 75; sys.modules["jaxvol.runtime.monitoring"] = monitoring
from jaxvol.runtime import peer_watch
peer_watch.GRACE_S, peer_watch.SETTLE_S = 0.3, 0.6
process, board, act = int(sys.argv[1]), sys.argv[2], sys.argv[3]
questions = iter(["token", "port"])

def agree(value):
    name = f"{board}/{next(questions)}"
    if process == 0:
        open(name + "~", "w").write(str(value)); os.rename(name + "~", name)
    while not os.path.exists(name):
        time.sleep(0.01)
    return int(open(name).read())

peer_watch.start(process, "127.0.0.1", agree)
print("in", flush=True)
sys.stdin.readline()
if act == "wait":
    time.sleep(20)
elif act.isdigit():
    peer_watch.goodbye(int(act)); os._exit(int(act))
"""


def members(folder, acts):
    """Processes 0, 1, ... that all hold their lifelines; each does its act when it is told to."""
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", MEMBER, str(n), str(folder), act],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for n, act in enumerate(acts)
    ]
    assert [member.stdout.readline() for member in processes] == ["in\n"] * len(acts)
    time.sleep(0.3)  # process 0 still has to read who called
    return processes


def act(member):
    member.stdin.write("\n")
    member.stdin.flush()


def ends(processes, limit=15):
    """[(status, stderr)] of all."""
    return [(member.wait(limit), member.stderr.read()) for member in processes]


@pytest.mark.parametrize("victim", [0, 1])
def test_a_process_that_is_killed_ends_the_others_with_75_and_a_sentence(tmp_path, victim):
    processes = members(tmp_path, ["wait"] * 3)
    for member in processes:
        act(member)
    began = time.monotonic()
    processes[victim].send_signal(signal.SIGKILL)
    results = ends(processes)
    assert results[victim][0] == -signal.SIGKILL and time.monotonic() - began < 10
    others = [t for n, t in enumerate(results) if n != victim]
    assert [status for status, _ in others] == [75, 75]
    assert any(
        f"process {victim} was killed, or its machine is gone" in said for _, said in others
    ), others
    assert all(
        "run the same command again" in said or "its message says why" in said for _, said in others
    ), others


@pytest.mark.parametrize("ending", [0, 1])
def test_a_process_that_ends_with_an_error_ends_the_others_with_its_status(tmp_path, ending):
    processes = members(tmp_path, ["3" if n == ending else "wait" for n in range(2)])
    for member in reversed(processes):
        act(member)
    results = ends(processes)
    assert [status for status, _ in results] == [3, 3]
    assert (
        f"process {ending} of this run ended with status 3; its message says why"
        in results[1 - ending][1]
    )


def test_processes_that_end_in_order_do_not_disturb_one_another(tmp_path):
    # the last one is told later: it outlives process 0
    processes = members(tmp_path, ["done", "done", "done"])
    for member in processes[:2]:
        act(member)
    assert ends(processes[:2]) == [(0, ""), (0, "")]
    time.sleep(0.5)
    assert processes[2].poll() is None
    act(processes[2])
    assert ends(processes[2:]) == [(0, "")]


def test_a_stranger_who_knocks_and_leaves_is_no_process(tmp_path):
    processes = members(tmp_path, ["done", "done"])
    port = int((tmp_path / "port").read_text())
    for said in (b"", b"GET / HTTP/1.1\r\n\r\n", b"\0" * 8):
        with socket.create_connection(("127.0.0.1", port)) as stranger:
            stranger.sendall(said)
    time.sleep(1)
    assert [member.poll() for member in processes] == [None, None]
    for member in processes:
        act(member)
    assert ends(processes) == [(0, ""), (0, "")]
