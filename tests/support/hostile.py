"""What a process that was taken over sends."""

import array
import contextlib
import os
import socket
import struct
from typing import Any


def lingering() -> tuple[socket.socket, socket.socket]:
    """(a TCP socket whose last close waits an hour for its unsent data, its other end, which reads nothing)."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        ours = socket.create_connection(listening.getsockname())
        theirs = listening.accept()[0]
    ours.setblocking(False)
    with contextlib.suppress(BlockingIOError):
        while True:
            ours.send(bytes(1 << 16))
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 3600))
    return ours, theirs


def send_lingering(to: Any, packet: bytes = b"{}") -> socket.socket:
    """Send a descriptor of such a socket over this one, and keep none; its other end. OSError: the kernel refuses it."""
    ours, theirs = lingering()
    with socket.socket(fileno=os.dup(to.fileno())) as sock, ours:
        try:
            sock.sendmsg([packet], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [ours.fileno()]))])
        except OSError:
            ours.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, bytes(8))  # else this process would wait
            theirs.close()
            raise
    return theirs
