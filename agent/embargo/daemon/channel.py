"""What processes say to each other: one JSON object per packet of a Unix socket pair, descriptors beside it.

SOCK_SEQPACKET keeps packets whole and in order, so there is no framing to get wrong. A message larger than a packet (many
hosts, many networks) travels as a sealed file in memory, whose descriptor is the last one beside the mark.
"""

import array
import asyncio
import fcntl
import json
import os
import socket
from collections.abc import AsyncGenerator, Sequence
from typing import Any

from embargo.errors import EmbargoError

MAX_PACKET = 120_000  # octets: below the default send buffer, so a packet always fits
MAX_MESSAGE = 256 << 20  # octets of a message in memory
MAX_FDS = 250  # SCM_MAX_FD is 253
_IN_MEMORY = b"@"  # what stands for the message when it is in the last descriptor
_EVENTS, _ANSWERED = b"E", b"A"  # what stands before event lines and answered addresses; JSON begins with a brace

Message = dict[str, Any]


class ChannelError(EmbargoError):
    """What was sent is no message, or cannot be one."""


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
        if len(data) <= MAX_PACKET:
            self._send(data, fds)
            return
        memory = _memory(data)
        try:
            self._send(_IN_MEMORY, [*fds, memory])
        finally:
            os.close(memory)

    def send_events(self, lines: bytes, lost: int, attempts: int) -> None:
        """Event lines as they are, with the events lost before them and the attempts that all stands for: too many for JSON."""
        self._send(_EVENTS + lost.to_bytes(8) + attempts.to_bytes(8) + lines, ())

    def send_answered(self, records: bytes) -> None:
        """Addresses that names were answered with, packed (`witness.pack`): one for nearly every answer of an upstream."""
        self._send(_ANSWERED + records, ())

    def _send(self, data: bytes, fds: Sequence[int]) -> None:
        if len(fds) > MAX_FDS:
            raise ChannelError(f"a message cannot carry {len(fds)} descriptors, {MAX_FDS} at most")
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
            if data.startswith(_EVENTS):
                _close(fds)
                lost, attempts = int.from_bytes(data[1:9]), int.from_bytes(data[9:17])
                return {"op": "events", "lost": lost, "attempts": attempts, "lines": data[17:]}, []
            if data.startswith(_ANSWERED):
                _close(fds)
                return {"op": "answered", "records": data[1:]}, []
            if data == _IN_MEMORY and fds:
                data = _content(fds.pop())
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


async def orders(channel: Channel) -> AsyncGenerator[tuple[Message, list[int]], None]:
    """What comes over a channel, until the other side is gone. To be closed (`aclosing`), so that nobody reads on."""
    loop = asyncio.get_running_loop()
    inbox: asyncio.Queue[tuple[Message, list[int]] | None] = asyncio.Queue()

    def readable() -> None:
        try:
            received = channel.receive()
        except BlockingIOError:
            return
        if received is None:
            loop.remove_reader(channel.fileno())
        inbox.put_nowait(received)

    channel.setblocking(False)
    loop.add_reader(channel.fileno(), readable)
    try:
        while (received := await inbox.get()) is not None:
            yield received
    finally:
        loop.remove_reader(channel.fileno())


def _memory(data: bytes) -> int:
    """A file in memory with this content that nobody can change any more."""
    if len(data) > MAX_MESSAGE:
        raise ChannelError(f"a message of {len(data)} octets is too large")
    fd = os.memfd_create("embargo-message", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    with open(fd, "wb", closefd=False) as file:
        file.write(data)
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
    return fd


def _content(fd: int) -> bytes:
    with open(fd, "rb") as file:
        file.seek(0)
        data = file.read(MAX_MESSAGE + 1)
    if len(data) > MAX_MESSAGE:
        raise ChannelError("a message is too large")
    return data


def _close(fds: Sequence[int]) -> None:
    for fd in fds:
        os.close(fd)
