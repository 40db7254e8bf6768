"""How the processes of a run notice that one of them is gone, and say so, before XLA aborts them.

XLA's coordination client ends a process with SIGABRT and a stack trace (status 134) a moment after
process 0 is gone.  So every process holds a connection to process 0 over which one byte is sent at
most: its exit status, when it ends by itself.  A connection that closes without it belonged to a
process that was killed, or to a machine that died.  Where no connection can be made, because of a
firewall say, the run goes on without, and XLA ends what is left.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import secrets
import socket
import struct
import threading
import time
from collections.abc import Callable

from absl import logging

from jaxvol.runtime.monitoring import UNFINISHED

CONNECT_S = 10  # for a connection to process 0
# for the message that a process has of its own when another one ended with an error
GRACE_S = 5
# for process 0 when another one is gone: it may know more; it may also wait for a save that cannot
# end, and after config.distributed.heartbeat_seconds XLA aborts it
SETTLE_S = 15
# (token, number of the process): a stranger who finds the port is not taken for a process
HELLO = struct.Struct("!ii")

_held: dict[int, socket.socket] = {}  # by the number of the process at the other end


def start(process: int, host: str, agree: Callable[[int], int]) -> None:
    """Connect to process 0 on `host`, which listens; `agree` gives all of them the largest value
    that one of them brings.
    """
    token = agree(secrets.randbelow(2**31) if process == 0 else 0)
    listener = _listen() if process == 0 else None
    port = agree(listener.getsockname()[1] if listener else 0)
    if listener:
        threading.Thread(
            target=_accept, args=(listener, token), name="jaxvol-lifeline", daemon=True
        ).start()
    elif port:
        _connect(process, host, port, token)
    atexit.register(goodbye, 0)  # before JAX's own goodbye, which was registered earlier


def _listen() -> socket.socket | None:
    both = socket.has_dualstack_ipv6()
    try:
        return socket.create_server(
            ("", 0), family=socket.AF_INET6 if both else socket.AF_INET, dualstack_ipv6=both
        )
    except OSError as error:
        logging.warning("no lifeline between the processes: %s", error)
        return None


def _accept(listener: socket.socket, token: int) -> None:
    while True:
        with contextlib.suppress(OSError, struct.error):
            connection, _ = listener.accept()
            connection.settimeout(CONNECT_S)
            said, other = HELLO.unpack(connection.recv(HELLO.size))
            if said == token:
                _hold(connection, other)
            else:
                connection.close()


def _connect(process: int, host: str, port: int, token: int) -> None:
    try:
        connection = socket.create_connection((host, port), timeout=CONNECT_S)
        connection.sendall(HELLO.pack(token, process))
    except OSError as error:
        logging.warning("no lifeline from process %d to %s:%d: %s", process, host, port, error)
        return
    _hold(connection, 0)


def _hold(connection: socket.socket, other: int) -> None:
    connection.settimeout(None)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    # a machine without power sends nothing at all: asked after 10 s of silence, given up after
    # three questions
    for name, value in (("TCP_KEEPIDLE", 10), ("TCP_KEEPINTVL", 5), ("TCP_KEEPCNT", 3)):
        if hasattr(socket, name):
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
    _held[other] = connection
    threading.Thread(
        target=_watch, args=(connection, other), name=f"jaxvol-lifeline-{other}", daemon=True
    ).start()


def _watch(connection: socket.socket, other: int) -> None:
    """Wait for the end of process `other`; unless it ended in order, end this one."""
    said = b""
    with contextlib.suppress(OSError):
        said = connection.recv(1)
    if said == b"\0":
        return
    if said:
        time.sleep(GRACE_S)
        _end(
            said[0],
            f"process {other} of this run ended with status {said[0]}; its message says why.",
        )
    if other:
        time.sleep(SETTLE_S)
    _end(
        UNFINISHED,
        f"another process of this run ended: process {other} was killed, or its machine is gone. "
        "What was saved is sound; run the same command again in all processes.",
    )


def _end(status: int, message: str) -> None:
    """Neither Python's files nor its exit handlers: XLA is about to abort."""
    os.write(2, f"\njaxvol: {message}\n".encode())
    goodbye(status)
    os._exit(status)


def goodbye(status: int) -> None:
    """Tell the others that this process ends by itself.

    With an error, process 0 waits for them: its end is what aborts them.
    """
    for connection in list(_held.values()):
        with contextlib.suppress(OSError):
            connection.send(bytes([status]))
    end = time.monotonic() + GRACE_S + 2
    while (
        status
        and time.monotonic() < end
        and any(other and not _closed(c) for other, c in list(_held.items()))
    ):
        time.sleep(0.05)


def _closed(connection: socket.socket) -> bool:
    """Whether the other end is gone; its last byte may still be there."""
    try:
        return not connection.recv(2, socket.MSG_PEEK | socket.MSG_DONTWAIT)
    except BlockingIOError:
        return False
    except OSError:
        return True
