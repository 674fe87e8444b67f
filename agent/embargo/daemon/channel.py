"""What processes say to each other: one JSON object per packet of a Unix socket pair, descriptors beside it.

SOCK_SEQPACKET keeps packets whole and in order, so there is no framing to get wrong; a packet is bounded by MAX_PACKET.
"""

import array
import json
import os
import socket
from collections.abc import Sequence
from typing import Any

from embargo.errors import EmbargoError

MAX_PACKET = 120_000  # octets: below the default send buffer, so a packet always fits
MAX_FDS = 250  # SCM_MAX_FD is 253

Message = dict[str, Any]


class ChannelError(EmbargoError):
    """The other side sent what is no message."""


def pair() -> tuple["Channel", socket.socket]:
    """A channel and the other end's socket, to be inherited by a child."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    return Channel(ours), theirs


class Channel:
    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock

    def fileno(self) -> int:
        return self._sock.fileno()

    def setblocking(self, flag: bool) -> None:
        self._sock.setblocking(flag)

    def close(self) -> None:
        self._sock.close()

    def send(self, message: Message, fds: Sequence[int] = ()) -> None:
        """Send one message. BlockingIOError when the other side does not read; OSError when it is gone."""
        data = json.dumps(message, separators=(",", ":")).encode()
        if len(data) > MAX_PACKET or len(fds) > MAX_FDS:
            raise ChannelError(f"{message.get('op')}: a message of {len(data)} octets and {len(fds)} descriptors is too large")
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        self._sock.sendmsg([data], rights)

    def receive(self) -> tuple[Message, list[int]] | None:
        """The next message and its descriptors (now ours to close); None when the other side is gone."""
        try:
            data, ancillary, flags, _ = self._sock.recvmsg(MAX_PACKET, socket.CMSG_SPACE(4 * MAX_FDS))
        except ConnectionResetError:
            return None
        fds: list[int] = []
        for level, kind, payload in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                numbers = array.array("i")
                numbers.frombytes(payload[: len(payload) - len(payload) % numbers.itemsize])
                fds += numbers
        if not data:
            return None
        try:
            message = json.loads(data)
            if flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC) or not isinstance(message, dict):
                raise ChannelError("a message was cut short")
        except ValueError:
            _close(fds)
            raise ChannelError("a message is not JSON") from None
        except ChannelError:
            _close(fds)
            raise
        return message, fds


def _close(fds: Sequence[int]) -> None:
    for fd in fds:
        os.close(fd)
