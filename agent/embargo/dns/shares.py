"""Shares of what is limited: clients take turns, and the client that has the most gives way to others.

Clients are counted by address, and addresses by group: an IPv4 address is a group of its own, IPv6 addresses with the same 64
leading bits are one, because a host can take as many of these as it likes (RFC 8981). Turns go round by group, and within a
group by address.
"""

import ipaddress
from collections import deque
from collections.abc import Callable
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


class _Held(Generic[T]):
    """Items of clients, each client's in the order in which they came."""

    def __init__(self) -> None:
        self._groups: dict[str, dict[str, dict[T, None]]] = {}  # by group and client
        self._counts: dict[str, int] = {}  # items of a group
        self.count = 0

    def add(self, group_: str, client: str, item: T) -> None:
        self._groups.setdefault(group_, {}).setdefault(client, {})[item] = None
        self._counts[group_] = self._counts.get(group_, 0) + 1
        self.count += 1

    def remove(self, group_: str, client: str, item: T) -> None:
        clients = self._groups[group_]
        del clients[client][item]
        self._counts[group_] -= 1
        self.count -= 1
        if not clients[client]:
            del clients[client]
        if not clients:
            del self._groups[group_], self._counts[group_]

    def oldest_of_most(self) -> T:
        """The oldest item of the client with the most, in the group with the most."""
        clients = self._groups[max(self._counts, key=self._counts.__getitem__)]
        items: dict[T, None] = max(clients.values(), key=lambda held: len(held))
        return next(iter(items))


class Places(Generic[T]):
    """Places for items of clients. `limit`: how many there are; `per_zone`: how many items may concern one zone.

    When all are taken, the oldest item of the client with the most gives way: a client that takes many takes them from itself.
    """

    def __init__(self, limit: int, per_zone: int, group_of: Callable[[str], str] = group) -> None:
        self._limit = limit
        self._group_of = group_of
        self._per_zone = per_zone
        self._all: _Held[T] = _Held()
        self._zones: dict[object, _Held[T]] = {}
        self._holders: dict[T, tuple[str, str, object]] = {}  # group, client and zone of each item

    def __len__(self) -> int:
        return len(self._holders)

    def add(self, item: T, client: str, zone: object) -> None:
        """Give an item a place, whether or not there is one left."""
        name = self._group_of(client)
        self._holders[item] = name, client, zone
        self._all.add(name, client, item)
        self._zones.setdefault(zone, _Held()).add(name, client, item)

    def remove(self, item: T) -> None:
        """Free the place of an item, if it has one."""
        holder = self._holders.pop(item, None)
        if holder is None:
            return
        group_, client, zone = holder
        self._all.remove(group_, client, item)
        held = self._zones[zone]
        held.remove(group_, client, item)
        if not held.count:
            del self._zones[zone]

    def client(self, item: T) -> str:
        """The client whose place an item has; empty if it has none."""
        return self._holders[item][1] if item in self._holders else ""

    def giving_way(self, zone: object) -> T | None:
        """The item that has to give way before another one about this zone has a place; None while there is room."""
        held = self._zones.get(zone)
        if held is not None and held.count >= self._per_zone:
            return held.oldest_of_most()
        return self._all.oldest_of_most() if self._all.count >= self._limit else None


class Turns(Generic[T]):
    """What waits to be done for clients. `limit`: how many of the items that may be refused wait at the same time."""

    def __init__(self, limit: int, group_of: Callable[[str], str] = group) -> None:
        self._limit = limit
        self._group_of = group_of
        self._groups: dict[str, dict[str, deque[T]]] = {}  # by group and client, both in the order of their next turn
        self._waiting = 0

    def __len__(self) -> int:
        return self._waiting

    def add(self, client: str, item: T, *, always: bool = False) -> bool:
        """Add an item of a client. False, unless `always`: there is no room for another one of this client.

        A client may have as many items as there is room left besides: one alone takes half of the limit, and the other half
        stays for the next (Choudhury and Hahne, "Dynamic Queue Length Thresholds", 1998).
        """
        name = self._group_of(client)
        clients = self._groups.setdefault(name, {})
        items = clients.get(client)
        if not always and (len(items) if items else 0) >= self._limit - self._waiting:
            if not clients:
                del self._groups[name]
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
