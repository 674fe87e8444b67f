"""The kernel's log of dropped packets (NFLOG), read from a plain netlink socket.

A datagram holds several messages, each with attributes in any order (linux/netfilter/nfnetlink_log.h); `decode` takes what
an event needs. Sequence numbers show what the kernel could not deliver: gaps are counted as lost.
"""

import errno
import socket
import struct
from typing import NamedTuple

from embargo.errors import FirewallError
from embargo.firewall import wire
from embargo.firewall.ruleset import SNAPLEN

PREFIX = b"embargo "
_NETLINK_NETFILTER, _SO_RCVBUFFORCE = 12, 33
_ULOG = 4  # NFNL_SUBSYS_ULOG
_PACKET, _CONFIG = _ULOG << 8 | 0, _ULOG << 8 | 1
# attributes of a packet message
_IN, _OUT, _HWADDR, _PAYLOAD, _PREFIX, _SEQUENCE = 4, 5, 8, 9, 10, 12
# attributes of a configuration message
_CFG_CMD, _CFG_MODE, _CFG_BUFFER, _CFG_TIMEOUT, _CFG_THRESHOLD, _CFG_FLAGS = 1, 2, 3, 4, 5, 6
_BIND, _COPY_PACKET, _FLAG_SEQUENCE = 1, 2, 1

RECEIVE_BUFFER = 8 << 20  # octets; about 30,000 records
KERNEL_BUFFER = 64 << 10  # octets that the kernel gathers before it sends
KERNEL_RECORDS = 32  # records after which it sends
KERNEL_TIMEOUT = 10  # hundredths of a second after which it sends what it has
DATAGRAMS_AT_ONCE = 64  # read before others have their turn
_DATAGRAM = 1 << 17  # octets; more than KERNEL_BUFFER


class Record(NamedTuple):
    """One logged packet."""

    app_class: str  # app/function, which follows PREFIX in the prefix of the rule
    family: int  # 4 or 6
    src: bytes
    dst: bytes
    proto: int
    sport: int  # 0 where the protocol has no ports, or the packet is a later fragment
    dport: int
    mac: str  # hardware address of the sender on the link; empty for packets of this machine
    indev: int  # index of the interface, 0 for none
    outdev: int


_PORTS = struct.Struct("!HH")
_WITH_PORTS = frozenset({6, 17, 33, 132, 136})
_OPTIONS = frozenset({0, 43, 60})  # hop-by-hop, routing and destination options (RFC 8200): next header, length in 8 octets
_FRAGMENT = 44
_MAX_OPTIONS = 4  # headers walked; SNAPLEN holds no more than three


def decode(data: bytes) -> tuple[list[Record], int, int]:
    """(records, first and last sequence number; -1 without any) of a datagram. What is no packet of ours is left out."""
    records: list[Record] = []
    first = last = -1
    for kind, _, _, payload in wire.messages(data):
        if kind == _PACKET:
            row = wire.attributes(payload, wire.NETFILTER_HEADER)
            if len(row.get(_SEQUENCE, b"")) == 4:
                last = int.from_bytes(row[_SEQUENCE])
                first = last if first < 0 else first
            record = _record(row)
            if record is not None:
                records.append(record)
    return records, first, last


def _record(row: dict[int, bytes]) -> Record | None:
    """What an event needs of these attributes; None for a packet that no rule of ours logged."""
    prefix = row.get(_PREFIX, b"")
    flow = _flow(row.get(_PAYLOAD, b"")) if prefix.startswith(PREFIX) else None
    if flow is None:
        return None
    app_class = prefix[len(PREFIX) :].rstrip(b"\0").decode("ascii", "replace")
    indev, outdev = int.from_bytes(row.get(_IN, b"")[:4]), int.from_bytes(row.get(_OUT, b"")[:4])
    return Record(app_class, *flow, _mac(row.get(_HWADDR, b"")), indev, outdev)


def _mac(value: bytes) -> str:
    """The hardware address in an NFULA_HWADDR: its length, two octets of padding, eight octets of room."""
    if len(value) < 12:
        return ""
    return value[4 : 4 + min(int.from_bytes(value[:2]), 8)].hex(":")


def _flow(packet: bytes) -> tuple[int, bytes, bytes, int, int, int] | None:
    """(family, source, destination, protocol, source port, destination port) of an IP packet's first octets; else None."""
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
    """(offset, protocol, fragment offset) of what follows the extension headers of an IPv6 packet (RFC 8200)."""
    header, proto, fragment = 40, packet[6], 0
    for _ in range(_MAX_OPTIONS):
        if fragment or len(packet) < header + 8:
            break  # a later fragment begins in the middle of its packet
        if proto in _OPTIONS:
            proto, header = packet[header], header + 8 * (packet[header + 1] + 1)
        elif proto == _FRAGMENT:
            fragment = int.from_bytes(packet[header + 2 : header + 4]) >> 3
            proto, header = packet[header], header + 8
        else:
            break
    return header, proto, fragment


class NfLog:
    """A log group, bound to this process: only one process may read a group. FirewallError for one that cannot be bound."""

    def __init__(self, group: int) -> None:
        self.lost = 0  # records
        self._expected = -1
        self._sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_NETFILTER)
        try:
            self._sock.bind((0, 0))
            self._sock.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, RECEIVE_BUFFER)
            self._sock.settimeout(5.0)
            settings = (
                wire.attribute(_CFG_CMD, bytes([_BIND])), wire.attribute(_CFG_MODE, struct.pack("!IBx", SNAPLEN, _COPY_PACKET)),
                wire.u32(_CFG_BUFFER, KERNEL_BUFFER), wire.u32(_CFG_TIMEOUT, KERNEL_TIMEOUT),
                wire.u32(_CFG_THRESHOLD, KERNEL_RECORDS), wire.attribute(_CFG_FLAGS, _FLAG_SEQUENCE.to_bytes(2)),
            )  # fmt: skip
            for setting in settings:
                self._configure(group, setting)
            self._sock.setblocking(False)
        except OSError as error:
            self._sock.close()
            raise FirewallError(f"read log group {group}", _explain(error)) from None

    def _configure(self, group: int, attribute: bytes) -> None:
        """One setting, acknowledged. OSError as the kernel says."""
        payload = wire.netfilter(resource=group) + attribute
        self._sock.send(wire.message(_CONFIG, wire.REQUEST | wire.ACK, 1, payload))
        while True:
            for kind, _, _, data in wire.messages(self._sock.recv(_DATAGRAM)):
                if kind == wire.ERROR:  # packets may come before it once the group is bound
                    if number := wire.error(data):
                        raise OSError(number, "")
                    return

    def fileno(self) -> int:
        """The descriptor of the socket, to wait for records."""
        return self._sock.fileno()

    def close(self) -> None:
        """Close the socket: the kernel no longer sends records to it."""
        self._sock.close()

    def read(self) -> list[Record]:
        """The records that have come, DATAGRAMS_AT_ONCE at most. What the kernel could not deliver is counted in `lost`."""
        taken: list[Record] = []
        for _ in range(DATAGRAMS_AT_ONCE):
            try:
                data = self._sock.recv(_DATAGRAM)
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
            taken += records
        return taken


def _explain(error: OSError) -> str:
    if error.errno in (errno.EBUSY, errno.EPERM):
        return "another process reads it, or CAP_NET_ADMIN is missing; set [firewall] log_group to a free number"
    if error.errno in (errno.EINVAL, errno.EOPNOTSUPP):
        return "the kernel has no nfnetlink_log; load that module"
    return error.strerror or errno.errorcode.get(error.errno or 0, str(error))
