"""Messages between two processes: one record per packet of a Unix socket pair.

SOCK_SEQPACKET keeps packets whole and in order, so no framing is needed. Records are JSON, except the frequent ones, which are
packed (`Packed`). The receiver declares which records it accepts, because the sender may be a process that an attacker has
taken over.

File descriptors go one way, from the supervisor with an order to a child. A record larger than a packet goes that way as a
sealed memory file: the packet is a marker, and the file's descriptor is the last one sent with it. Elsewhere it goes in pieces,
and no descriptor is taken: the receiver of a socket with SO_LINGER can be held in close(2) for as long as the sender likes.
"""

import array
import asyncio
import contextlib
import dataclasses
import fcntl
import json
import os
import select
import socket
import sys
import threading
from collections.abc import AsyncGenerator, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

from embargo import records
from embargo.errors import EmbargoError
from embargo.records import RecordError

MAX_PACKET = 120_000  # octets: below the default send buffer, so a packet always fits
MAX_MESSAGE = 256 << 20  # octets of an order in memory
MAX_ANSWER = 1 << 20  # octets of an answer in pieces: enough for the counts of thousands of upstreams
MAX_ATTEMPTS = 1 << 32  # per message: an hour of a flood of a million queries a second
MAX_FDS = 250  # that are sent with a message
PIECE_MILLISECONDS = 1000  # for the other side to take the next piece of a record
_SCM_MAX_FD = 253  # that a message can have: room for all of them, since the kernel closes the rest in our name
_SEALS = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW  # the content is final
_IN_MEMORY = b"@"  # marker packet: the record is in the file of the last descriptor
_PIECE, _LAST_PIECE = b"+", b"="  # first octet of the pieces of a record
_SO_PASSRIGHTS = 83  # Linux 6.16: off, no descriptor can be sent to this socket
_NO_LINGER = bytes(8)  # struct linger: off


class ChannelError(EmbargoError):
    """A received packet is not a record that this channel accepts, or a record to be sent is too large."""


@dataclass(frozen=True, slots=True)
class Failed:
    """The answer to an order that failed: the process works as before."""

    reason: str


class Packed:
    """A record that is a packet of this first octet, eight octets for each of its numbers, and the octets of its last field."""

    __slots__ = ()
    TAG: ClassVar[bytes]

    def pack(self) -> bytes:
        """The packet."""
        fields = dataclasses.fields(self)  # type: ignore[arg-type] # each subclass is a dataclass
        *numbers, octets = (getattr(self, field.name) for field in fields)
        return b"".join((self.TAG, *(number.to_bytes(8) for number in numbers), octets))

    @classmethod
    def unpack(cls, packet: bytes) -> Any:
        """The record in a packet. ChannelError if there is none."""
        start = 1 + 8 * (len(dataclasses.fields(cls)) - 1)  # type: ignore[arg-type] # each subclass is a dataclass
        if len(packet) < start:
            raise ChannelError(f"a {cls.__name__} that is too short")
        numbers = (int.from_bytes(packet[at : at + 8]) for at in range(1, start, 8))
        return cls(*numbers, packet[start:])  # type: ignore[call-arg] # a subclass has these fields


@dataclass(frozen=True, slots=True)
class Events(Packed):
    """Events as JSON, one a line, the number of events lost before them, and the number of attempts that both represent."""

    TAG = b"E"

    lost: int
    attempts: int
    lines: bytes

    def __post_init__(self) -> None:
        if not self.lost <= self.attempts <= MAX_ATTEMPTS or self.lines[-1:] not in (b"", b"\n"):
            raise ChannelError("events with impossible counts or without a final newline")


@dataclass(frozen=True, slots=True)
class Answered(Packed):
    """Names with the addresses in their answers, packed (`answered.pack`)."""

    TAG = b"A"

    packed: bytes


_TRUNCATED = int(socket.MSG_TRUNC | socket.MSG_CTRUNC)  # as plain numbers: a Flag takes a microsecond
_RIGHTS = socket.CMSG_SPACE(4 * _SCM_MAX_FD)
_JSON = json.JSONEncoder(separators=(",", ":"))  # json.dumps would make one for each record


class Received(NamedTuple):
    """A received message."""

    record: Any  # of a type that the channel accepts
    number: int | None  # of an order, or of the order that an answer belongs to
    fds: list[int]  # the receiver must close them; only of an order


def pair(accepts: Iterable[type] = ()) -> tuple["Channel", socket.socket]:
    """A supervisor's channel that accepts records of these types, and the socket of its other end, for a child to inherit."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    return Channel(ours, accepts, gives=True), theirs


class Channel:
    """One end of a socket pair. `accepts`: the types of records that may be received.

    `gives`: this is the supervisor's end, whose orders may have descriptors; `takes`: the end of a child that obeys them.
    """

    def __init__(self, sock: socket.socket, accepts: Iterable[type] = (), *, gives: bool = False, takes: bool = False) -> None:
        self._sock = sock
        self._accepts = records.by_name(accepts)
        self._packed = {kind.TAG: kind for kind in accepts if issubclass(kind, Packed)}
        self._gives, self._takes = gives, takes
        self._pieces = b""  # of a record whose last piece has not come
        if not takes:
            with contextlib.suppress(OSError):  # an older kernel: they are refused when they have come
                sock.setsockopt(socket.SOL_SOCKET, _SO_PASSRIGHTS, 0)

    def fileno(self) -> int:
        """The descriptor of the socket, to wait for records."""
        return self._sock.fileno()

    def setblocking(self, flag: bool) -> None:
        """Whether sending and receiving wait; without, they raise BlockingIOError."""
        self._sock.setblocking(flag)

    def close(self) -> None:
        """Close this end; the other end then reads the end of the channel.

        Packets that were not read may hold a socket with SO_LINGER, whose close the sender can make last. So a thread closes
        the end of a process that takes no descriptors.
        """
        if self._takes:
            self._sock.close()
            return
        try:
            threading.Thread(target=self._sock.close, daemon=True).start()
        except RuntimeError:  # no thread can be started
            self._sock.close()

    def shut(self) -> None:
        """Shut down receiving: packets that have already arrived can still be read, then `receive` returns None."""
        self._sock.shutdown(socket.SHUT_RD)
        self._sock.getsockopt(
            socket.SOL_SOCKET, socket.SO_ERROR
        )  # clears ECONNRESET, which would hide packets that arrived earlier

    # ── sending ──────────────────────────────────────────────────────────────────────────────────────────────────────

    def send(self, record: Any, fds: Sequence[int] = (), number: int | None = None) -> None:
        """Send one record. BlockingIOError if the receiver does not read, OSError if it is gone, ChannelError if too large.

        `number`: of an order, or of the order that an answer belongs to.
        """
        data = encode(record, number)
        if len(data) <= MAX_PACKET:
            self._send(data, fds)
        elif self._gives:
            memory = _memory(data)
            try:
                self._send(_IN_MEMORY, [*fds, memory])
            finally:
                os.close(memory)
        else:
            self._send_in_pieces(data)

    def send_packet(self, packet: bytes) -> None:
        """Send what `encode` has encoded, of MAX_PACKET octets at most. BlockingIOError, OSError."""
        self._sock.send(packet)

    def _send(self, data: bytes, fds: Sequence[int]) -> None:
        if len(fds) > MAX_FDS:
            raise ChannelError(f"a message can carry {MAX_FDS} descriptors, not {len(fds)}")
        if fds:
            self._sock.sendmsg([data], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))])
        else:
            self._sock.send(data)

    def _send_in_pieces(self, data: bytes) -> None:
        """Send a record larger than a packet. Once the first piece is sent the others must follow, so this waits for room."""
        size = MAX_PACKET - 1
        pieces = [data[at : at + size] for at in range(0, len(data), size)]
        room = select.poll()
        room.register(self._sock, select.POLLOUT)
        for number, piece in enumerate(pieces, 1):
            if number > 1 and not room.poll(PIECE_MILLISECONDS):
                raise TimeoutError("the other side does not read")
            self._sock.send((_LAST_PIECE if number == len(pieces) else _PIECE) + piece)

    # ── receiving ────────────────────────────────────────────────────────────────────────────────────────────────────

    def receive(self, most: int = 0) -> Received | None:
        """The next record; None when the other side is gone. ChannelError if it is not a record that this channel accepts.

        `most`: octets of a record larger than a packet; 0: none is accepted.
        """
        while True:
            try:
                data, ancillary, flags, _ = self._sock.recvmsg(MAX_PACKET, _RIGHTS)
            except ConnectionResetError:
                return None
            fds = _descriptors(ancillary)
            if fds and not self._takes:
                _dispose(fds)
                raise ChannelError("descriptors, which this process does not take")
            if not data:
                _close(fds)
                return None
            try:
                if flags & _TRUNCATED:
                    raise ChannelError("a message is truncated")
                whole = self._assembled(data, fds, most)
                if whole is not None:
                    return Received(*self._read(whole), fds)
            except BaseException:
                _close(fds)
                raise

    def _assembled(self, data: bytes, fds: list[int], most: int) -> bytes | None:
        """The packet, or the record of which it is a part; None until that is whole. ChannelError if it is too large."""
        if data == _IN_MEMORY and fds and most:
            fd = fds.pop()
            try:
                return _content(fd, most)
            finally:
                os.close(fd)
        if data[:1] not in (_PIECE, _LAST_PIECE):
            if self._pieces:
                raise ChannelError("a record that is not whole")
            return data
        if self._takes or len(self._pieces) + len(data) > most:
            raise ChannelError(f"a record of more than {most} octets")
        if data[:1] == _PIECE and len(data) < MAX_PACKET:
            raise ChannelError("a piece that is not full")  # very many of them would be one record
        self._pieces += data[1:]
        if data[:1] == _PIECE:
            return None
        whole, self._pieces = self._pieces, b""
        return whole

    def _read(self, data: bytes) -> tuple[Any, int | None]:
        """(record, number) of a packet. ChannelError if there is none."""
        packed = self._packed.get(data[:1])
        if packed is not None:
            return packed.unpack(data), None
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
        if isinstance(record, Packed):
            raise ChannelError(f"{type(record).__name__} as JSON, although it must be packed")
        return record, number


def encode(record: Any, number: int | None = None) -> bytes:
    """A record as `Channel.send` sends it."""
    if isinstance(record, Packed):
        return record.pack()
    value = records.tagged(record)
    if number is not None:
        value["id"] = number
    return _JSON.encode(value).encode()


def _descriptors(ancillary: Iterable[tuple[int, int, bytes]]) -> list[int]:
    fds: list[int] = []
    for level, kind, payload in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            numbers = array.array("i")
            numbers.frombytes(payload[: len(payload) - len(payload) % numbers.itemsize])
            fds += numbers
    return fds


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


def _dispose(fds: list[int]) -> None:
    """Close descriptors of a hostile process in a thread of its own, which a socket with SO_LINGER may hold instead of us."""

    def close() -> None:
        for fd in fds:
            try:
                sock = socket.socket(fileno=fd)
            except OSError:  # no socket
                os.close(fd)
                continue
            with contextlib.suppress(OSError):
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _NO_LINGER)
            sock.close()

    with contextlib.suppress(RuntimeError):  # no thread can be started: they stay open
        threading.Thread(target=close, daemon=True).start()
