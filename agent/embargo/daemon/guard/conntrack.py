"""The kernel's table of connections (ctnetlink): entries of flows that are blocked now go, old marks are taken off.

Blocking needs none of this: our rules stand before anybody's established-accept. An entry that goes frees its place, and
ends a flow that the kernel forwards past the rules (a flowtable). Dumps are read piece by piece, so that others get on.
"""

import errno
import os
import socket
import struct
from collections.abc import Callable, Iterator
from typing import NamedTuple

from embargo.errors import FirewallError
from embargo.firewall import nft

COUNT = "/proc/sys/net/netfilter/nf_conntrack_count"
BATCH = 256  # requests in one send
_NETLINK_NETFILTER, _SO_SNDBUFFORCE, _SO_RCVBUFFORCE = 12, 32, 33
_NEW, _GET, _DELETE = 1 << 8 | 0, 1 << 8 | 1, 1 << 8 | 2  # NFNL_SUBSYS_CTNETLINK
_REQUEST, _ACK, _DUMP = 1, 4, 0x300
_ERROR, _DONE = 2, 3
_TUPLE_ORIG, _TUPLE_REPLY, _MARK, _ID, _ZONE, _MARK_MASK = 1, 2, 8, 12, 18, 21
_IP, _V4_SRC, _V4_DST, _V6_SRC, _V6_DST = 1, 1, 2, 3, 4
_HEADER = struct.Struct("=IHHII")
_ATTRIBUTE = struct.Struct("=HH")


class Flow(NamedTuple):
    """One entry. `source` sent the first packet to `destination`; `answers` sends the answers, after any translation."""

    family: int  # 4 or 6
    source: bytes
    destination: bytes
    answers: bytes
    tuple_: bytes  # the attributes that name the entry


class Conntrack:
    """Every method raises FirewallError."""

    def __init__(self) -> None:
        try:
            self._sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETLINK_NETFILTER)
            self._sock.bind((0, 0))
            self._sock.setsockopt(socket.SOL_SOCKET, _SO_SNDBUFFORCE, 1 << 20)
            self._sock.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, 4 << 20)
            self._sock.settimeout(5.0)
        except OSError as error:
            raise FirewallError("open conntrack", error.strerror or str(error)) from None
        self._sequence = 0

    def close(self) -> None:
        self._sock.close()

    def flows(self, mark: int = 0, mask: int = 0) -> Iterator[Flow]:
        """The entries, or those with these bits in their mark. The kernel sorts out by mark itself."""
        payload = struct.pack("=BBH", 0, 0, 0)
        if mask:
            payload += nft.u32(_MARK, mark) + nft.u32(_MARK_MASK, mask)
        self._sequence += 1
        try:
            self._sock.send(_HEADER.pack(16 + len(payload), _GET, _REQUEST | _DUMP, self._sequence, 0) + payload)
            while True:
                data = self._sock.recv(1 << 17)
                offset, size = 0, len(data)
                while offset + 16 <= size:
                    length, kind, _, sequence, _ = _HEADER.unpack_from(data, offset)
                    if sequence == self._sequence:
                        if kind == _DONE:
                            return
                        if kind == _ERROR:
                            raise OSError(-struct.unpack_from("=i", data, offset + 16)[0], "")
                        flow = _flow(data, offset + 20, offset + length)
                        if flow is not None:
                            yield flow
                    offset += (length + 3) & ~3
        except OSError as error:
            raise FirewallError("list connections", error.strerror or os.strerror(error.errno or 0)) from None

    def delete(self, flows: list[Flow]) -> int:
        """Forget these; how many were still there."""
        return self._each(_DELETE, _ACK, flows, b"")

    def unmark(self, flows: list[Flow], mask: int) -> int:
        """Take these bits off their marks; how many were still there."""
        return self._each(_NEW, _ACK, flows, nft.u32(_MARK, 0) + nft.u32(_MARK_MASK, mask))

    def _each(self, kind: int, flags: int, flows: list[Flow], more: bytes) -> int:
        done = 0
        try:
            for start in range(0, len(flows), BATCH):
                part, out = flows[start : start + BATCH], []
                first = self._sequence + 1
                for flow in part:
                    self._sequence += 1
                    family = socket.AF_INET if flow.family == 4 else socket.AF_INET6
                    payload = struct.pack("=BBH", family, 0, 0) + flow.tuple_ + more
                    out.append(_HEADER.pack(16 + len(payload), kind, _REQUEST | flags, self._sequence, 0) + payload)
                self._sock.send(b"".join(out))
                done += self._answers(first, len(part))
        except OSError as error:
            raise FirewallError("change connections", error.strerror or str(error)) from None
        return done

    def _answers(self, first: int, count: int) -> int:
        """How many of these requests were carried out. One that has ended by itself is none."""
        seen = done = 0
        while seen < count:
            data = self._sock.recv(1 << 17)
            offset = 0
            while offset + 20 <= len(data):
                length, kind, _, sequence, _ = _HEADER.unpack_from(data, offset)
                if kind == _ERROR and sequence >= first:
                    number = -struct.unpack_from("=i", data, offset + 16)[0]
                    if number not in (0, errno.ENOENT, errno.EBUSY):
                        raise OSError(number, os.strerror(number))
                    seen += 1
                    done += not number
                offset += (length + 3) & ~3
        return done


def _flow(data: bytes, offset: int, end: int) -> Flow | None:
    original = reply = rest = b""
    while offset + 4 <= end:
        length, kind = _ATTRIBUTE.unpack_from(data, offset)
        if length < 4:
            break
        kind &= 0x3FFF
        if kind == _TUPLE_ORIG:
            original = data[offset : offset + length]
        elif kind == _TUPLE_REPLY:
            reply = data[offset : offset + length]
        elif kind in (_ID, _ZONE):
            rest += data[offset : offset + (length + 3 & ~3)]
        offset += (length + 3) & ~3
    if not original or not reply:
        return None
    source, destination = _addresses(original)
    return Flow(4 if len(source) == 4 else 6, source, destination, _addresses(reply)[0], original + rest)


def _addresses(tuple_: bytes) -> tuple[bytes, bytes]:
    """(source, destination) of a tuple: the first attribute in it is the addresses', and they stand in this order."""
    _, kind = _ATTRIBUTE.unpack_from(tuple_, 8)
    if kind & 0x3FFF == _V4_SRC:
        return tuple_[12:16], tuple_[20:24]
    return tuple_[12:28], tuple_[32:48]


def in_use() -> bool:
    """Are connections tracked in this network namespace anyway?"""
    try:
        with open(COUNT, encoding="ascii") as file:
            return int(file.read()) > 0
    except (OSError, ValueError):
        return False


Judge = Callable[[bytes], bool]


def blocked(flow: Flow, judge: Judge) -> bool:
    """Does a flow lead to or come from an address that is blocked?"""
    return judge(flow.destination) or judge(flow.answers) or judge(flow.source)
