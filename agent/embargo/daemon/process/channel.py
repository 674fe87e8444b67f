"""What processes say to each other: one JSON object per packet of a Unix socket pair, descriptors beside it.

SOCK_SEQPACKET keeps packets whole and in order, so there is no framing to get wrong. A message larger than a packet (many
hosts, many networks) travels as a sealed file in memory, whose descriptor is the last one beside the mark. Who receives says
how large such a message may be: a resolver reads what strangers send, and whoever listens to it must not be held up by it.
"""

import array
import asyncio
import fcntl
import json
import os
import socket
import sys
from collections.abc import AsyncGenerator, Sequence
from typing import Any

from embargo.errors import EmbargoError

MAX_PACKET = 120_000  # octets: below the default send buffer, so a packet always fits
MAX_MESSAGE = 256 << 20  # octets of a message in memory: an order
MAX_ANSWER = 1 << 20  # of one that answers an order: thousands of upstreams
MAX_ATTEMPTS = 1 << 32  # that one message tells of: an hour of what a flood can be
MAX_FDS = 250  # SCM_MAX_FD is 253
_SEALS = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW  # nobody can change it any more
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

    def shut(self) -> None:
        """Let nothing more come. What has come is still received, and then None."""
        self._sock.shutdown(socket.SHUT_RD)
        self._sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)  # of a reset: it would be told instead of what came before

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
        """Addresses that names were answered with, packed (`answered.pack`): one for nearly every answer of an upstream."""
        self._send(_ANSWERED + records, ())

    def _send(self, data: bytes, fds: Sequence[int]) -> None:
        if len(fds) > MAX_FDS:
            raise ChannelError(f"a message cannot carry {len(fds)} descriptors, {MAX_FDS} at most")
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        self._sock.sendmsg([data], rights)

    def receive(self, in_memory: int = 0) -> tuple[Message, list[int]] | None:
        """The next message and its descriptors (now ours to close); None when the other side is gone.

        `in_memory`: octets that a message beside the packet may have. ChannelError for what is no message.
        """
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
            _close(fds)
            return None
        try:
            if flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC):
                raise ChannelError("a message was cut short")
            return _message(data, fds, in_memory), fds
        except BaseException:
            _close(fds)
            raise


async def orders(channel: Channel) -> AsyncGenerator[tuple[Message, list[int]], None]:
    """What comes over a channel, until the other side is gone. To be closed (`aclosing`), so that nobody reads on.

    An order that is cut short, as when there was no descriptor left for what came with it, ends it too: whoever asked waits
    for an answer, and a process that is started anew gets all of it again.
    """
    loop = asyncio.get_running_loop()
    inbox: asyncio.Queue[tuple[Message, list[int]] | None] = asyncio.Queue()

    def readable() -> None:
        try:
            received = channel.receive(MAX_MESSAGE)
        except BlockingIOError:
            return
        except ChannelError as error:
            print(f"an order cannot be read, so this process ends: {error}", file=sys.stderr)
            received = None
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


def _message(data: bytes, fds: list[int], in_memory: int) -> Message:
    """What a packet says. ChannelError when that is nothing; the descriptor of a message in memory is closed."""
    if data.startswith(_EVENTS):
        lost, attempts, lines = int.from_bytes(data[1:9]), int.from_bytes(data[9:17]), data[17:]
        if not lost <= attempts <= MAX_ATTEMPTS or lines[-1:] not in (b"", b"\n"):
            raise ChannelError("events that cannot be")
        return {"op": "events", "lost": lost, "attempts": attempts, "lines": lines}
    if data.startswith(_ANSWERED):
        return {"op": "answered", "records": data[1:]}
    if data == _IN_MEMORY and fds and in_memory:
        fd = fds.pop()
        try:
            data = _content(fd, in_memory)
        finally:
            os.close(fd)
    try:
        message = json.loads(data)
    except (ValueError, RecursionError):
        raise ChannelError("a message is not JSON") from None
    if not isinstance(message, dict) or message.get("op") in ("events", "answered"):  # those are packed, never JSON
        raise ChannelError("a message is not what it should be")
    return message


def _memory(data: bytes) -> int:
    """A file in memory with this content that nobody can change any more."""
    if len(data) > MAX_MESSAGE:
        raise ChannelError(f"a message of {len(data)} octets is too large")
    fd = os.memfd_create("embargo-message", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    with open(fd, "wb", closefd=False) as file:
        file.write(data)
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SEALS | fcntl.F_SEAL_SEAL)
    return fd


def _content(fd: int, limit: int) -> bytes:
    """Whatever else it was, a pipe say, reading it might never end."""
    try:
        seals = fcntl.fcntl(fd, fcntl.F_GET_SEALS)
    except OSError:
        seals = 0
    if seals & _SEALS != _SEALS:
        raise ChannelError("a message in memory is not sealed")
    size = os.fstat(fd).st_size
    if size > limit:
        raise ChannelError(f"a message of {size} octets is too large")
    return os.pread(fd, size, 0)


def _close(fds: Sequence[int]) -> None:
    for fd in fds:
        os.close(fd)
