"""Messages between two processes: one record per packet of a Unix socket pair, with file descriptors as ancillary data.

SOCK_SEQPACKET keeps packets whole and in order, so no framing is needed. Records are JSON, except the two frequent ones, event
lines and answered addresses, which are packed. A record larger than a packet (many hosts, many networks) is sent as a sealed
memory file: the packet is a marker, and the file's descriptor is the last one sent with it. The receiver declares which records
it accepts and how large one in memory may be, because the sender may be a resolver that an attacker has taken over.
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
MAX_MESSAGE = 256 << 20  # octets of an order in memory
MAX_ANSWER = 1 << 20  # octets of an answer in memory: enough for the counts of thousands of upstreams
MAX_ATTEMPTS = 1 << 32  # per message: an hour of a flood of a million queries a second
MAX_FDS = 250  # SCM_MAX_FD is 253
_SEALS = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW  # the content is final
_IN_MEMORY = b"@"  # marker packet: the record is in the file of the last descriptor
_EVENTS, _ANSWERED = b"E", b"A"  # first octet of the packed records; JSON begins with a brace


class ChannelError(EmbargoError):
    """A received packet is not a record that this channel accepts, or a record to be sent is too large."""


@dataclass(frozen=True, slots=True)
class Failed:
    """The answer to an order that failed: the process works as before."""

    reason: str


@dataclass(frozen=True, slots=True)
class Events:
    """Lines for the event log, the number of events lost before them, and the number of attempts that both represent."""

    lines: bytes
    lost: int
    attempts: int


@dataclass(frozen=True, slots=True)
class Answered:
    """Names with the addresses in their answers, packed (`answered.pack`)."""

    records: bytes


_TRUNCATED = int(socket.MSG_TRUNC | socket.MSG_CTRUNC)  # as plain numbers: a Flag takes a microsecond
_RIGHTS = socket.CMSG_SPACE(4 * MAX_FDS)
_JSON = json.JSONEncoder(separators=(",", ":"))  # json.dumps would make one for each record


class Received(NamedTuple):
    """A received message."""

    record: Any  # of a type that the channel accepts
    number: int | None  # of an order, or of the order that an answer belongs to
    fds: list[int]  # the receiver must close them


def pair(accepts: Iterable[type] = ()) -> tuple["Channel", socket.socket]:
    """A channel that accepts records of these types, and the socket of its other end, for a child to inherit."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    return Channel(ours, accepts), theirs


class Channel:
    """One end of a socket pair. `accepts`: the types of records that may be received."""

    def __init__(self, sock: socket.socket, accepts: Iterable[type] = ()) -> None:
        self._sock = sock
        self._accepts = records.by_name(accepts)

    def fileno(self) -> int:
        """The descriptor of the socket, to wait for records."""
        return self._sock.fileno()

    def setblocking(self, flag: bool) -> None:
        """Whether sending and receiving wait; without, they raise BlockingIOError."""
        self._sock.setblocking(flag)

    def close(self) -> None:
        """Close this end; the other end then reads the end of the channel."""
        self._sock.close()

    def shut(self) -> None:
        """Shut down receiving: packets that have already arrived can still be read, then `receive` returns None."""
        self._sock.shutdown(socket.SHUT_RD)
        self._sock.getsockopt(
            socket.SOL_SOCKET, socket.SO_ERROR
        )  # clears ECONNRESET, which would hide packets that arrived earlier

    def send(self, record: Any, fds: Sequence[int] = (), number: int | None = None) -> None:
        """Send one record. BlockingIOError if the receiver does not read, OSError if it is gone, ChannelError if too large.

        `number`: of an order, or of the order that an answer belongs to.
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
        data = _JSON.encode(value).encode()
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
            raise ChannelError(f"a message can carry {MAX_FDS} descriptors, not {len(fds)}")
        if fds:
            self._sock.sendmsg([data], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))])
        else:
            self._sock.send(data)

    def receive(self, in_memory: int = 0) -> Received | None:
        """The next record; None when the other side is gone. ChannelError if it is not a record that this channel accepts.

        `in_memory`: limit for a record in a memory file, in octets; 0: none is accepted.
        """
        try:
            data, ancillary, flags, _ = self._sock.recvmsg(MAX_PACKET, _RIGHTS)
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
            if flags & _TRUNCATED:
                raise ChannelError("a message is truncated")
            return Received(*self._read(data, fds, in_memory), fds)
        except BaseException:
            _close(fds)
            raise

    def _read(self, data: bytes, fds: list[int], in_memory: int) -> tuple[Any, int | None]:
        """(record, number) of a packet; closes the descriptor of a record in memory. ChannelError if there is none."""
        if data.startswith(_EVENTS) and Events.__name__ in self._accepts:
            lost, attempts, lines = int.from_bytes(data[1:9]), int.from_bytes(data[9:17]), data[17:]
            if not lost <= attempts <= MAX_ATTEMPTS or lines[-1:] not in (b"", b"\n"):
                raise ChannelError("event lines with impossible counts or without a final newline")
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
            value = records.from_json(data)
        except ValueError:
            raise ChannelError("not JSON") from None
        number = value.pop("id", None) if isinstance(value, dict) else None
        if number is not None and type(number) is not int:
            raise ChannelError("an order number that is not an integer")
        try:
            record = records.untagged(self._accepts, value)
        except RecordError as error:
            raise ChannelError(str(error)) from None
        if isinstance(record, (Events, Answered)):
            raise ChannelError(f"{type(record).__name__} as JSON, although it must be packed")
        return record, number


async def orders(channel: Channel) -> AsyncGenerator[Received, None]:
    """The orders that arrive, until the other side is gone. Close the generator (`aclosing`) to unregister its reader.

    An unreadable order, for instance one whose descriptors exceed the limit of this process, also ends the generator: the
    process exits, and its replacement is started with the complete state.
    """
    loop = asyncio.get_running_loop()
    inbox: asyncio.Queue[Received | None] = asyncio.Queue()

    def readable() -> None:
        try:
            received = channel.receive(MAX_MESSAGE)
        except BlockingIOError:
            return
        except ChannelError as error:
            print(f"exiting, because an order cannot be read: {error}", file=sys.stderr)
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
    """The descriptor of a sealed memory file with this content."""
    if len(data) > MAX_MESSAGE:
        raise ChannelError(f"a message of {len(data)} octets exceeds the limit of {MAX_MESSAGE}")
    fd = os.memfd_create("embargo-message", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    with open(fd, "wb", closefd=False) as file:
        file.write(data)
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SEALS | fcntl.F_SEAL_SEAL)
    return fd


def _content(fd: int, limit: int) -> bytes:
    """The content of a sealed memory file. Anything else is refused: reading from a pipe, for instance, might never end."""
    try:
        seals = fcntl.fcntl(fd, fcntl.F_GET_SEALS)
    except OSError:
        seals = 0
    if seals & _SEALS != _SEALS:
        raise ChannelError("a message in memory is not sealed")
    size = os.fstat(fd).st_size
    if size > limit:
        raise ChannelError(f"a message of {size} octets exceeds the limit of {limit}")
    return os.pread(fd, size, 0)


def _close(fds: Sequence[int]) -> None:
    for fd in fds:
        os.close(fd)
