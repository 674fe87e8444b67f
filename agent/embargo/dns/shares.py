"""Shares of what is limited: clients take turns, and no client gets more than its part while others wait.

Clients are counted by address, and addresses by group: an IPv4 address is a group of its own, IPv6 addresses with the same 64
leading bits are one, because a host can take as many of these as it likes (RFC 8981). Turns go round by group, and within a
group by address.
"""

import ipaddress
from collections import deque
from typing import Generic, TypeVar

MEMO = 4096  # addresses whose group is remembered; forged addresses must not fill memory
_groups: dict[str, str] = {}

T = TypeVar("T")


def group(client: str) -> str:
    """The group of a client's address: a text that is the same for all of its members."""
    found = _groups.get(client)
    if found is None:
        address = ipaddress.ip_address(client.partition("%")[0])
        address = getattr(address, "ipv4_mapped", None) or address
        found = str(address) if address.version == 4 else address.exploded[:19]
        if len(_groups) >= MEMO:
            _groups.clear()
        _groups[client] = found
    return found


class Turns(Generic[T]):
    """What waits to be done for clients. `limit`: how many of the items that may be refused wait at the same time."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._groups: dict[str, dict[str, deque[T]]] = {}  # by group and client, both in the order of their next turn
        self._waiting = 0

    def __len__(self) -> int:
        return self._waiting

    def add(self, client: str, item: T, *, always: bool = False) -> bool:
        """Add an item of a client. False, unless `always`: there is no room for another one of this client.

        A client may have as many items as there is room left besides: one alone takes half of the limit, and the other half
        stays for the next (Choudhury and Hahne, "Dynamic Queue Length Thresholds", 1998).
        """
        clients = self._groups.setdefault(group(client), {})
        items = clients.get(client)
        if not always and (len(items) if items else 0) >= self._limit - self._waiting:
            if not clients:
                del self._groups[group(client)]
            return False
        if items is None:
            items = clients[client] = deque()
        items.append(item)
        self._waiting += 1
        return True

    def next(self) -> T | None:
        """Take the next item: of the group that has waited longest, and in it of the client that has. None: none is left."""
        if not self._waiting:
            return None
        name = next(iter(self._groups))
        clients = self._groups.pop(name)
        client = next(iter(clients))
        items = clients.pop(client)
        item = items.popleft()
        self._waiting -= 1
        if items:
            clients[client] = items
        if clients:
            self._groups[name] = clients
        return item
