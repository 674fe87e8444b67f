"""Links, addresses, default routes and neighbours of this network namespace, read by pyroute2 (rtnetlink(7)).

A list is whole, or it is an OSError that names the list. Four things that pyroute2 leaves open are closed here:

- A list that changed while the kernel wrote it is marked (NLM_F_DUMP_INTR). It is read again, MAX_READINGS times in all.
- A list that the kernel broke off ends with an error number, which pyroute2 takes for a plain end.
- pyroute2 also stops at a datagram of which its parser keeps nothing, as `get_default_routes` does on a machine with some
  thousand routes. What is not kept is passed on as _SKIPPED, undecoded: that takes 2 µs instead of 35.
- Its exceptions are of several kinds, and few of them are OSErrors.

Not to be called in a thread whose event loop runs. The import of pyroute2 takes 70 ms and 10 MiB, so it stands inside.
"""

import asyncio
import contextlib
import errno
import importlib
import os
import socket
import struct
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from embargo.firewall import wire

MAX_READINGS = 20  # of a list that changes all the time
_GET_LINK, _GET_ADDRESS, _GET_ROUTE, _GET_NEIGHBOUR = 18, 22, 26, 30  # RTM_*
_HEADER = struct.Struct("=IHHI")  # nlmsghdr: length, kind, flags, sequence number
_BODY = 16  # octets of the whole header
_STATE = struct.Struct("=H")  # ndm_state
#: stands for a message that is not kept; its flag says that it is one of several (NLM_F_MULTI)
_SKIPPED: dict[str, Any] = {"header": {"type": 0, "flags": 2, "error": None}}
_UNRESOLVED = 0x01 | 0x20 | 0x40  # NUD_INCOMPLETE, NUD_FAILED, NUD_NOARP: multicast
_MAC = 17  # characters of an Ethernet address

#: whether to decode a message: its datagram, and the offset of its body
Keep = Callable[[bytes, int], bool]


class Way(NamedTuple):
    """One way of a default route."""

    interface: int  # index, 0 for none
    gateway: str  # address of the next hop, empty for none


def load() -> None:
    """Load pyroute2 before it is needed."""
    with contextlib.suppress(ImportError):  # an upgrade exchanges the files just now
        importlib.import_module("pyroute2")


def links() -> dict[int, str]:
    """Index → name of every interface."""
    return {row["index"]: row.get("IFLA_IFNAME") or "" for row in _list("interfaces", _GET_LINK)}


def addresses() -> list[tuple[int, str, int]]:
    """(interface index, address, prefix length) of every address of this machine, in the kernel's order."""
    rows = _list("addresses", _GET_ADDRESS)
    # IFA_LOCAL is the address itself where IFA_ADDRESS is the other end's of a point-to-point link
    return [(row["index"], row.get("IFA_LOCAL") or row.get("IFA_ADDRESS"), row["prefixlen"]) for row in rows]


def default_ways() -> list[Way]:
    """Every way of every default route, whatever its table, IPv4 before IPv6."""
    ways: list[Way] = []
    for family in (socket.AF_INET, socket.AF_INET6):
        for route in _list("routes", _GET_ROUTE, family, lambda data, body: data[body + 1] == 0):  # rtm_dst_len
            ways += _ways(route)
    return ways


def _ways(route: Any) -> Iterator[Way]:
    for way in route.get("RTA_MULTIPATH") or [route]:
        interface = route.get("RTA_OIF") if way is route else way["oif"]
        via = way.get("RTA_VIA")  # a next hop of the other family
        yield Way(interface or 0, way.get("RTA_GATEWAY") or (via["addr"] if via else ""))


def neighbours() -> dict[str, str]:
    """IP address → hardware address (Ethernet) of every neighbour that has one."""
    rows = _list("neighbours", _GET_NEIGHBOUR, keep=lambda data, body: not _STATE.unpack_from(data, body + 8)[0] & _UNRESOLVED)
    found = {row.get("NDA_DST"): row.get("NDA_LLADDR") or "" for row in rows}
    return {address: mac for address, mac in found.items() if address and len(mac) == _MAC}


def _list(what: str, kind: int, family: int = socket.AF_UNSPEC, keep: Keep = lambda data, body: True) -> list[Any]:
    """The decoded messages of a list. `kind`: of the request."""
    for _ in range(MAX_READINGS):
        rows, torn = asyncio.run(_read(what, kind, family, keep))
        if not torn:
            return rows
    raise OSError(errno.EBUSY, f"cannot list {what}: they change all the time")


async def _read(what: str, kind: int, family: int, keep: Keep) -> tuple[list[Any], bool]:
    """(the decoded messages, whether the list changed while the kernel wrote it)."""
    try:
        from pyroute2 import AsyncIPRoute
        from pyroute2.netlink.exceptions import NetlinkDecodeError, NetlinkError
        from pyroute2.netlink.nlsocket import NetlinkRequest
    except ImportError as error:  # an upgrade exchanges the files just now
        raise OSError(errno.ENOENT, f"cannot list {what}: {error}") from None

    torn = False

    def parse(data: bytes, offset: int, length: int) -> Any:
        nonlocal torn
        _, got, flags, sequence = _HEADER.unpack_from(data, offset)
        torn = torn or bool(flags & wire.DUMP_INTR)
        if got == wire.DONE:
            if length >= _BODY + 4 and (number := wire.error(data[offset + _BODY : offset + length])) > 0:
                raise OSError(number, os.strerror(number))
        elif got != wire.ERROR and not keep(data, offset + _BODY):
            return _SKIPPED
        return netlink.marshal.parse_one_message(got, flags, sequence, data, offset, length)

    try:
        async with AsyncIPRoute() as netlink:
            message = netlink.marshal.msg_map[kind]()
            message["family"] = family
            request = NetlinkRequest(netlink, message, msg_type=kind, msg_flags=wire.REQUEST | wire.DUMP, parser=parse)
            await request.send()
            return [row async for row in request.response() if row is not _SKIPPED], torn
    except OSError as error:
        raise OSError(error.errno, f"cannot list {what}: {error.strerror or error}") from None
    except NetlinkError as error:
        raise OSError(error.code, f"cannot list {what}: {os.strerror(error.code)}") from None
    except (NetlinkDecodeError, LookupError, RuntimeError, ValueError, struct.error) as error:
        raise OSError(errno.EIO, f"cannot list {what}: {type(error).__name__}: {error}") from None
