"""What processes say to each other: one record per packet of a Unix socket pair, descriptors beside it.

SOCK_SEQPACKET keeps packets whole and in order, so there is no framing to get wrong. A record is JSON, but for the two that
are too many for it: event lines and answered addresses, which are packed. A record larger than a packet (many hosts, many
networks) travels as a sealed file in memory, whose descriptor is the last one beside the mark. The receiver says which
records it accepts, and how large one in memory may be: a resolver reads what strangers send, so what it says is not believed.
"""

import array
import asyncio
import fcntl
import json
import os
import socket
import sys
from collections.abc import AsyncGenerator, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from embargo import records
from embargo.errors import EmbargoError
from embargo.records import RecordError

MAX_PACKET = 120_000  # octets: below the default send buffer, so a packet always fits
MAX_MESSAGE = 256 << 20  # octets of a message in memory: an order
MAX_ANSWER = 1 << 20  # of one that answers an order: thousands of upstreams
MAX_ATTEMPTS = 1 << 32  # that one message tells of: an hour of what a flood can be
MAX_FDS = 250  # SCM_MAX_FD is 253
_SEALS = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW  # nobody can change it any more
_IN_MEMORY = b"@"  # what stands for the message when it is in the last descriptor
_EVENTS, _ANSWERED = b"E", b"A"  # what stands before event lines and answered addresses; JSON begins with a brace


class ChannelError(EmbargoError):
    """What was received is not a record that is accepted here, or what is to be sent is too large."""


@dataclass(frozen=True, slots=True)
class Failed:
    """The answer to an order that was not carried out; what was in force stays in force."""

    reason: str


@dataclass(frozen=True, slots=True)
class Events:
    """Event lines as they go into the log, the events lost before them, and how many attempts both stand for."""

    lines: bytes
    lost: int
    attempts: int


@dataclass(frozen=True, slots=True)
class Answered:
    """Addresses that names were answered with, packed (`answered.pack`)."""

    records: bytes


class Received(NamedTuple):
    record: Any  # of a kind that the channel accepts
    number: int | None  # of the order that it is, or that it answers
    fds: list[int]  # the receiver's to close


def pair(accepts: Iterable[type] = ()) -> tuple["Channel", socket.socket]:
    """A channel that accepts these records, and the other end's socket, to be inherited by a child."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    return Channel(ours, accepts), theirs


class Channel:
    def __init__(self, sock: socket.socket, accepts: Iterable[type] = ()) -> None:
        self._sock = sock
        self._accepts = records.by_name(accepts)

    def fileno(self) -> int:
        return self._sock.fileno()

    def setblocking(self, flag: bool) -> None:
        self._sock.setblocking(flag)

    def close(self) -> None:
        self._sock.close()

    def shut(self) -> None:
        """Receive what has arrived and then None; nothing more arrives."""
        self._sock.shutdown(socket.SHUT_RD)
        self._sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)  # clears a reset, which would hide what arrived before it

    def send(self, record: Any, fds: Sequence[int] = (), number: int | None = None) -> None:
        """Send one record. BlockingIOError when the other side does not read; OSError when it is gone.

        `number`: of the order that it is, or that it answers.
        """
        match record:
            case Events():
                self._send(_EVENTS + record.lost.to_bytes(8) + record.attempts.to_bytes(8) + record.lines, ())
                return
            case Answered():
                self._send(_ANSWERED + record.records, ())
                return
        value = records.tagged(record)
        if number is not None:
            value["id"] = number
        data = json.dumps(value, separators=(",", ":")).encode()
        if len(data) <= MAX_PACKET:
            self._send(data, fds)
            return
        memory = _memory(data)
        try:
            self._send(_IN_MEMORY, [*fds, memory])
        finally:
            os.close(memory)

    def _send(self, data: bytes, fds: Sequence[int]) -> None:
        if len(fds) > MAX_FDS:
            raise ChannelError(f"a message cannot carry {len(fds)} descriptors, {MAX_FDS} at most")
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        self._sock.sendmsg([data], rights)

    def receive(self, in_memory: int = 0) -> Received | None:
        """The next record; None when the other side is gone. ChannelError for what is no record accepted here.

        `in_memory`: octets that a record beside the packet may have.
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
            return Received(*self._read(data, fds, in_memory), fds)
        except BaseException:
            _close(fds)
            raise

    def _read(self, data: bytes, fds: list[int], in_memory: int) -> tuple[Any, int | None]:
        """(record, number) of a packet; the descriptor of a record in memory is closed. ChannelError when it is none."""
        if data.startswith(_EVENTS) and Events.__name__ in self._accepts:
            lost, attempts, lines = int.from_bytes(data[1:9]), int.from_bytes(data[9:17]), data[17:]
            if not lost <= attempts <= MAX_ATTEMPTS or lines[-1:] not in (b"", b"\n"):
                raise ChannelError("events that cannot be")
            return Events(lines, lost, attempts), None
        if data.startswith(_ANSWERED) and Answered.__name__ in self._accepts:
            return Answered(data[1:]), None
        if data == _IN_MEMORY and fds and in_memory:
            fd = fds.pop()
            try:
                data = _content(fd, in_memory)
            finally:
                os.close(fd)
        try:
            value = json.loads(data)
        except (ValueError, RecursionError):
            raise ChannelError("not JSON") from None
        number = value.pop("id", None) if isinstance(value, dict) else None
        if number is not None and type(number) is not int:
            raise ChannelError("a number that is none")
        try:
            record = records.untagged(self._accepts, value)
        except RecordError as error:
            raise ChannelError(str(error)) from None
        if isinstance(record, Events | Answered):  # those are packed, never JSON
            raise ChannelError("a record that is sent in another way")
        return record, number


async def orders(channel: Channel) -> AsyncGenerator[Received, None]:
    """The orders that arrive, until the other side is gone. Close it (`aclosing`), or the reader stays registered.

    An order that cannot be read, for instance because no descriptor was left for what came with it, ends it too: the process
    exits, and the one that is started in its place gets everything again.
    """
    loop = asyncio.get_running_loop()
    inbox: asyncio.Queue[Received | None] = asyncio.Queue()

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
