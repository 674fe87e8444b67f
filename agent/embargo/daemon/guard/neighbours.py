"""Which hardware address answers for an IP address: the kernel's neighbour tables (rtnetlink(7)), looked up now and then.

On a plain socket: pyroute2 cannot be asked from within a running event loop.
"""

import contextlib
import ipaddress
import socket
import struct
from collections.abc import Iterator

from embargo.firewall import wire

FRESH = 10.0  # seconds for which what was read will do
_GETNEIGH, _REQUEST, _DUMP, _ERROR, _DONE = 30, 1, 0x300, 2, 3
_DESTINATION, _HARDWARE = 1, 2  # NDA_DST, NDA_LLADDR
_NOBODY = 0x01 | 0x20 | 0x40  # NUD_INCOMPLETE, NUD_FAILED, NUD_NOARP: multicast
_HEADER = struct.Struct("=IHHII")  # nlmsghdr
_NEIGHBOUR = 12  # octets of ndmsg


class Neighbours:
    def __init__(self) -> None:
        self._read_at = -FRESH
        self._macs: dict[bytes, str] = {}

    def mac(self, address: bytes, now: float) -> str:
        """Empty when nobody answers for it."""
        self._look(now)
        return self._macs.get(address, "")

    def addresses(self, mac: str, now: float) -> list[str]:
        """The addresses that one machine answers for."""
        self._look(now)
        return [str(ipaddress.ip_address(address)) for address, each in self._macs.items() if each == mac] if mac else []

    def _look(self, now: float) -> None:
        if now < self._read_at + FRESH:
            return
        self._read_at = now
        with contextlib.suppress(OSError):  # what was known will do
            self._macs = dict(_table())


def _table() -> Iterator[tuple[bytes, str]]:
    """(IP address, hardware address) of every neighbour that has one."""
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE) as sock:
        sock.settimeout(1.0)
        sock.bind((0, 0))
        sock.send(_HEADER.pack(16 + _NEIGHBOUR, _GETNEIGH, _REQUEST | _DUMP, 1, 0) + bytes(_NEIGHBOUR))
        while True:
            data = sock.recv(1 << 16)
            offset = 0
            while offset + 16 <= len(data):
                length, kind, _, _, _ = _HEADER.unpack_from(data, offset)
                if kind in (_DONE, _ERROR) or length < 16:
                    return
                state = struct.unpack_from("=H", data, offset + 24)[0]
                row = wire.attributes(data[offset + 16 + _NEIGHBOUR : offset + length])
                if not state & _NOBODY and len(row.get(_DESTINATION, b"")) in (4, 16) and len(row.get(_HARDWARE, b"")) == 6:
                    yield row[_DESTINATION], row[_HARDWARE].hex(":")
                offset += (length + 3) & ~3
