"""The kernel's log of dropped packets (NFLOG), read from a plain netlink socket.

A datagram holds several messages, each with attributes in any order (linux/netfilter/nfnetlink_log.h); `decode` walks them
and takes what an event needs. Sequence numbers tell what the kernel could not deliver: gaps are counted as lost.
"""

import errno
import socket
import struct
from typing import NamedTuple

from embargo.errors import FirewallError
from embargo.firewall.ruleset import SNAPLEN

PREFIX = "embargo "
_NETLINK_NETFILTER, _SO_RCVBUFFORCE = 12, 33
_ULOG = 4  # NFNL_SUBSYS_ULOG
_PACKET, _CONFIG = _ULOG << 8 | 0, _ULOG << 8 | 1
_NLM_F_REQUEST, _NLM_F_ACK, _NLMSG_ERROR = 1, 4, 2
# attributes of a packet message
_IN, _OUT, _HWADDR, _PAYLOAD, _PREFIX, _SEQUENCE = 4, 5, 8, 9, 10, 12
# attributes of a configuration message
_CFG_CMD, _CFG_MODE, _CFG_BUFFER, _CFG_TIMEOUT, _CFG_THRESHOLD, _CFG_FLAGS = 1, 2, 3, 4, 5, 6
_BIND, _COPY_PACKET, _FLAG_SEQUENCE = 1, 2, 1

RECEIVE_BUFFER = 8 << 20  # octets; about 30 000 records
KERNEL_BUFFER = 64 << 10  # octets the kernel gathers before it sends
KERNEL_TIMEOUT = 10  # hundredths of a second after which it sends all the same
BATCH = 64  # datagrams a wake-up


class Record(NamedTuple):
    app_class: str  # what stands behind "embargo " in the rule's prefix: app/function
    family: int  # 4 or 6
    src: bytes
    dst: bytes
    proto: int
    sport: int  # 0 where the protocol has no ports, or the packet is a later fragment
    dport: int
    mac: str  # of the sender on the link; empty for our own packets
    indev: int  # interface indices, 0 for none
    outdev: int


_MESSAGE = struct.Struct("=IHHII")
_ATTRIBUTE = struct.Struct("=HH")
_PORTS = struct.Struct("!HH")
_U32 = struct.Struct("!I")
_WITH_PORTS = frozenset({6, 17, 33, 132, 136})
_OPTIONS = frozenset({0, 43, 60})  # hop-by-hop, routing and destination options (RFC 8200): next header, length in 8 octets
_FRAGMENT = 44
_MAX_OPTIONS = 4  # headers walked; SNAPLEN holds no more than three


def decode(data: bytes) -> tuple[list[Record], int, int]:
    """(records, first and last sequence number; -1 without any) of a datagram. What is no packet of ours is passed over."""
    records: list[Record] = []
    first = last = -1
    offset, size = 0, len(data)
    while offset + 20 <= size:
        length, kind, _, _, _ = _MESSAGE.unpack_from(data, offset)
        if length < 20 or offset + length > size:
            break
        if kind == _PACKET:
            record, sequence = _packet(data, offset + 20, offset + length)
            if sequence >= 0:
                first = sequence if first < 0 else first
                last = sequence
            if record is not None:
                records.append(record)
        offset += (length + 3) & ~3
    return records, first, last


def _packet(data: bytes, offset: int, end: int) -> tuple[Record | None, int]:
    indev = outdev = 0
    sequence = -1
    mac = prefix = ""
    start = stop = 0
    while offset + 4 <= end:
        length, kind = _ATTRIBUTE.unpack_from(data, offset)
        if length < 4 or offset + length > end:
            break
        kind &= 0x3FFF
        value, behind = offset + 4, offset + length
        if kind == _PAYLOAD:
            start, stop = value, behind
        elif kind == _PREFIX:
            prefix = data[value:behind].rstrip(b"\0").decode("ascii", "replace")
        elif kind == _HWADDR and length >= 16:
            octets = int.from_bytes(data[value : value + 2])
            mac = data[value + 4 : value + 4 + min(octets, 8)].hex(":")
        elif length == 8:
            number = _U32.unpack_from(data, value)[0]
            if kind == _IN:
                indev = number
            elif kind == _OUT:
                outdev = number
            elif kind == _SEQUENCE:
                sequence = number
        offset += (length + 3) & ~3
    flow = _flow(data[start:stop]) if prefix.startswith(PREFIX) else None
    if flow is None:
        return None, sequence
    return Record(prefix[len(PREFIX) :], *flow, mac, indev, outdev), sequence


def _flow(packet: bytes) -> tuple[int, bytes, bytes, int, int, int] | None:
    """(family, source, destination, protocol, source port, destination port) of an IP packet's first octets."""
    version = packet[0] >> 4 if packet else 0
    if version == 4 and len(packet) >= 20:
        header = 4 * (packet[0] & 15)
        proto, fragment = packet[9], int.from_bytes(packet[6:8]) & 0x1FFF
        family, src, dst = 4, packet[12:16], packet[16:20]
    elif version == 6 and len(packet) >= 40:
        header, proto, fragment = _behind_options(packet)
        family, src, dst = 6, packet[8:24], packet[24:40]
    else:
        return None
    if proto in _WITH_PORTS and not fragment and header >= 20 and len(packet) >= header + 4:
        sport, dport = _PORTS.unpack_from(packet, header)
        return family, src, dst, proto, sport, dport
    return family, src, dst, proto, 0, 0


def _behind_options(packet: bytes) -> tuple[int, int, int]:
    """(offset, protocol, fragment offset) of what an IPv6 packet carries behind its extension headers."""
    header, proto, fragment = 40, packet[6], 0
    for _ in range(_MAX_OPTIONS):
        if fragment or len(packet) < header + 8:
            break  # a later fragment starts in the middle of something
        if proto in _OPTIONS:
            proto, header = packet[header], header + 8 * (packet[header + 1] + 1)
        elif proto == _FRAGMENT:
            fragment = int.from_bytes(packet[header + 2 : header + 4]) >> 3
            proto, header = packet[header], header + 8
        else:
            break
    return header, proto, fragment


class NfLog:
    """One group, bound: only one process may read a group."""

    def __init__(self, group: int) -> None:
        self.lost = 0
        self._expected = -1
        self._sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_NETFILTER)
        try:
            self._sock.bind((0, 0))
            self._sock.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, RECEIVE_BUFFER)
            self._sock.settimeout(5.0)
            self._configure(group, _attribute(_CFG_CMD, bytes([_BIND])))
            settings = (
                (_CFG_MODE, struct.pack("!IBx", SNAPLEN, _COPY_PACKET)), (_CFG_BUFFER, _U32.pack(KERNEL_BUFFER)),
                (_CFG_TIMEOUT, _U32.pack(KERNEL_TIMEOUT)), (_CFG_THRESHOLD, _U32.pack(32)),
                (_CFG_FLAGS, _FLAG_SEQUENCE.to_bytes(2)),
            )  # fmt: skip
            for kind, value in settings:
                self._configure(group, _attribute(kind, value))
            self._sock.setblocking(False)
        except OSError as error:
            self._sock.close()
            raise FirewallError(f"read log group {group}", _explain(error)) from None

    def _configure(self, group: int, attribute: bytes) -> None:
        """One setting, acknowledged. OSError as the kernel says."""
        payload = struct.pack("=BBH", 0, 0, socket.htons(group)) + attribute
        self._sock.send(_MESSAGE.pack(16 + len(payload), _CONFIG, _NLM_F_REQUEST | _NLM_F_ACK, 1, 0) + payload)
        while True:
            data = self._sock.recv(1 << 16)
            _, kind, _, _, _ = _MESSAGE.unpack_from(data)
            if kind == _NLMSG_ERROR:  # packets may come before it once the group is bound
                number = -int(struct.unpack_from("=i", data, 16)[0])
                if number:
                    raise OSError(number, "")
                return

    def fileno(self) -> int:
        return self._sock.fileno()

    def close(self) -> None:
        self._sock.close()

    def read(self) -> list[Record]:
        """The records that are there, a bounded batch of them. What the kernel had to throw away is counted in `lost`."""
        found: list[Record] = []
        for _ in range(BATCH):
            try:
                data = self._sock.recv(1 << 17)
            except BlockingIOError:
                break
            except OSError as error:
                if error.errno != errno.ENOBUFS:  # the gap in the numbers tells how many were lost
                    raise FirewallError("read the log", error.strerror or str(error)) from None
                continue
            records, first, last = decode(data)
            if first >= 0:
                if self._expected >= 0:
                    self.lost += (first - self._expected) & 0xFFFFFFFF
                self._expected = (last + 1) & 0xFFFFFFFF
            found += records
        return found


def _attribute(kind: int, value: bytes) -> bytes:
    return _ATTRIBUTE.pack(4 + len(value), kind) + value + bytes(-len(value) % 4)


def _explain(error: OSError) -> str:
    if error.errno in (errno.EBUSY, errno.EPERM):
        return "another process reads it, or CAP_NET_ADMIN is missing; set [firewall] log_group to a free number"
    if error.errno in (errno.EINVAL, errno.EOPNOTSUPP):
        return "the kernel has no nfnetlink_log; load that module"
    return error.strerror or errno.errorcode.get(error.errno or 0, str(error))
