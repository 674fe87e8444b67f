"""The kernel's table of connections (ctnetlink): entries of flows that are blocked now are deleted, old marks cleared.

Blocking needs none of this: our rules stand before anybody's established-accept. Deleting an entry frees its place, and ends
a flow that the kernel forwards past the rules (a flowtable). A list is read piece by piece, so that other threads get on.
"""

import errno
import os
import socket
import sys
from collections.abc import Callable, Iterator
from typing import NamedTuple

from embargo.errors import FirewallError
from embargo.firewall import wire

COUNT = "/proc/sys/net/netfilter/nf_conntrack_count"
REQUESTS_AT_ONCE = 256  # in one send
TIMEOUT = 5.0  # seconds that the kernel may take for an answer
_DATAGRAM = 1 << 17  # octets; the kernel's are of 32 KiB at most
_NETLINK_NETFILTER, _SO_SNDBUFFORCE, _SO_RCVBUFFORCE = 12, 32, 33
_NEW, _GET, _DELETE = 1 << 8 | 0, 1 << 8 | 1, 1 << 8 | 2  # NFNL_SUBSYS_CTNETLINK
_TUPLE_ORIG, _TUPLE_REPLY, _MARK, _ID, _ZONE, _MARK_MASK = 1, 2, 8, 12, 18, 21  # CTA_*
_V4_SRC = 1  # CTA_IP_V4_SRC
_HEAD4, _HEAD6 = wire.netfilter(socket.AF_INET), wire.netfilter(socket.AF_INET6)
_MIN_TUPLE = 24  # octets: the headers of the tuple and of CTA_TUPLE_IP, then source and destination, each with a header


class Flow(NamedTuple):
    """One entry. `source` sent the first packet to `destination`; `answers` sends the answers, after any translation."""

    source: bytes
    destination: bytes
    answers: bytes
    name: bytes  # the attributes that name the entry: CTA_TUPLE_ORIG, CTA_ID and, in a zone, CTA_ZONE


class Conntrack:
    """Every method raises FirewallError."""

    def __init__(self) -> None:
        try:
            self._sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETLINK_NETFILTER)
            self._sock.bind((0, 0))
            self._sock.setsockopt(socket.SOL_SOCKET, _SO_SNDBUFFORCE, 1 << 20)
            self._sock.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, 4 << 20)
            self._sock.settimeout(TIMEOUT)
        except OSError as error:
            raise FirewallError("open conntrack", error.strerror or str(error)) from None
        self._sequence = 0

    def close(self) -> None:
        """Close the socket."""
        self._sock.close()

    def flows(self, mark: int = 0, mask: int = 0) -> Iterator[Flow]:
        """The entries, or those with these bits in their mark. The kernel selects by mark itself."""
        payload = wire.netfilter()
        if mask:
            payload += wire.u32(_MARK, mark) + wire.u32(_MARK_MASK, mask)
        self._sequence += 1
        try:
            self._sock.send(wire.message(_GET, wire.REQUEST | wire.DUMP, self._sequence, payload))
            while True:
                for kind, _, sequence, data in wire.messages(self._sock.recv(_DATAGRAM)):
                    if sequence != self._sequence:
                        continue
                    if kind == wire.DONE:
                        return
                    if kind == wire.ERROR:
                        raise OSError(wire.error(data), "")
                    flow = _flow(data)
                    if flow is not None:
                        yield flow
        except OSError as error:
            raise FirewallError("list connections", error.strerror or os.strerror(error.errno or 0)) from None

    def delete(self, flows: list[Flow]) -> int:
        """Delete these entries; how many were still there."""
        return self._each(_DELETE, flows, b"")

    def unmark(self, flows: list[Flow], mask: int) -> int:
        """Clear these bits of their marks; how many were still there."""
        return self._each(_NEW, flows, wire.u32(_MARK, 0) + wire.u32(_MARK_MASK, mask))

    def _each(self, kind: int, flows: list[Flow], more: bytes) -> int:
        done = 0
        try:
            for start in range(0, len(flows), REQUESTS_AT_ONCE):
                part, requests, flags = flows[start : start + REQUESTS_AT_ONCE], [], wire.REQUEST
                first, last = self._sequence + 1, self._sequence + len(part)
                for flow in part:
                    self._sequence += 1
                    head = _HEAD4 if len(flow.source) == 4 else _HEAD6
                    if self._sequence == last:
                        flags |= wire.ACK  # the kernel reports failures unasked
                    requests.append(wire.message(kind, flags, self._sequence, head + more + flow.name))
                self._sock.send(b"".join(requests))
                done += len(part) - self._failures(first, last)
        except OSError as error:
            raise FirewallError("change connections", error.strerror or str(error)) from None
        return done

    def _failures(self, first: int, last: int) -> int:
        """How many of these requests were not carried out, because the entry had ended by itself."""
        failed = 0
        while True:
            for kind, _, sequence, data in wire.messages(self._sock.recv(_DATAGRAM)):
                if kind == wire.ERROR and sequence >= first:
                    number = wire.error(data)
                    if number not in (0, errno.ENOENT, errno.EBUSY):
                        raise OSError(number, os.strerror(number))
                    failed += number != 0
                    if sequence == last:
                        return failed


def _flow(data: bytes) -> Flow | None:
    """The entry that a message is about; None for one without the tuples of both directions."""
    row = wire.attributes(data, wire.NETFILTER_HEADER, header=0)
    original, reply = row.get(_TUPLE_ORIG, b""), row.get(_TUPLE_REPLY, b"")
    if len(original) < _MIN_TUPLE or len(reply) < _MIN_TUPLE:
        return None
    source, destination = _addresses(original)
    name = original + row.get(_ID, b"") + row.get(_ZONE, b"")  # all but the last are multiples of four octets
    return Flow(source, destination, _addresses(reply)[0], name)


def _addresses(tuple_: bytes) -> tuple[bytes, bytes]:
    """(source, destination). At fixed places, since nested walks cost twice the time: the kernel writes CTA_TUPLE_IP first
    in a tuple, and the source before the destination in it."""
    kind = int.from_bytes(tuple_[10:12], sys.byteorder) & 0x3FFF
    return (tuple_[12:16], tuple_[20:24]) if kind == _V4_SRC else (tuple_[12:28], tuple_[32:48])


def in_use() -> bool:
    """Whether connections are tracked in this network namespace, whatever for."""
    try:
        with open(COUNT, encoding="ascii") as file:
            return int(file.read()) > 0
    except (OSError, ValueError):
        return False


Judge = Callable[[bytes], bool]


def blocked(flow: Flow, judge: Judge) -> bool:
    """Whether a flow leads to or comes from an address that is blocked."""
    return judge(flow.destination) or judge(flow.answers) or judge(flow.source)
