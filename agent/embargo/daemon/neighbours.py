"""Which hardware address answers for an IP address: the kernel's neighbour tables (rtnetlink(7)), looked up now and then."""

import contextlib
import ipaddress

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

FRESH = 10.0  # seconds for which what was read will do


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
        with contextlib.suppress(NetlinkError, OSError), IPRoute() as route:
            rows = [(row.get("NDA_DST"), row.get("NDA_LLADDR")) for row in route.get_neighbours()]
            self._macs = {ipaddress.ip_address(address).packed: mac for address, mac in rows if address and mac}
