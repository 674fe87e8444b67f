"""The examples of docs/gateway.md, and what a client on eth0 is told of resolvers by whoever follows them."""

import re
import socket
import struct
import time
from pathlib import Path

PAGE = (Path(__file__).parent.parent.parent / "docs/gateway.md").read_text()


def block(kind: str, wanted: str = "") -> str:
    """The first block of a kind that holds this text."""
    found: list[str] = re.findall(rf"```{kind}\n(.*?)```", PAGE, re.DOTALL)
    return next(text for text in found if wanted in text)


def leased_resolvers() -> list[str]:
    """Option 6 of a lease that a DHCP server on eth0 gives (RFC 2131, 2132); systemd 252 has it in the last message alone."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"eth0")
        sock.bind(("0.0.0.0", 68))
        sock.settimeout(3.0)
        try:
            address, offer = _asked(sock, bytes((53, 1, 1)))
            _, lease = _asked(sock, bytes((53, 1, 3, 50, 4)) + address + bytes((54, 4)) + offer[54])
        except (TimeoutError, KeyError):
            return []
    found = lease.get(6, b"")
    return [socket.inet_ntop(socket.AF_INET, found[i : i + 4]) for i in range(0, len(found), 4)]


def _asked(sock: socket.socket, options: bytes) -> tuple[bytes, dict[int, bytes]]:
    """The address and the options of a DHCP server's answer."""
    head = struct.pack("!BBBBIHH16x6s10x192x", 1, 1, 6, 0, 7, 0, 0x8000, bytes.fromhex("020000000001"))
    wanted = bytes((55, 2, 3, 6, 255))  # routers and resolvers
    sock.sendto(head + b"\x63\x82\x53\x63" + options + wanted, ("255.255.255.255", 67))
    answer = sock.recv(2048)
    rest, found = answer[240:], dict[int, bytes]()
    while rest and rest[0] != 255:
        if rest[0]:
            found[rest[0]] = rest[2 : 2 + rest[1]]
        rest = rest[2 + rest[1] :] if rest[0] else rest[1:]
    return answer[16:20], found


def advertised_resolvers() -> list[str]:
    """The RDNSS options of the first router advertisement that answers a solicitation on eth0 (RFC 8106)."""
    with socket.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_ICMPV6) as sock:
        scope = socket.if_nametoindex("eth0")
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_HOPS, 255)
        sock.setsockopt(
            socket.IPPROTO_IPV6, socket.IPV6_JOIN_GROUP, socket.inet_pton(socket.AF_INET6, "ff02::1") + struct.pack("I", scope)
        )
        sock.settimeout(1.0)
        sock.sendto(bytes((133, 0, 0, 0, 0, 0, 0, 0)), ("ff02::2", 0, 0, scope))
        deadline = time.monotonic() + 3.0
        while time.monotonic() < deadline:
            try:
                message = sock.recv(2048)
            except TimeoutError:
                continue
            if message[0] == 134:
                options, found = message[16:], b""
                while options and options[1]:
                    if options[0] == 25:
                        found += options[8 : 8 * options[1]]
                    options = options[8 * options[1] :]
                return [socket.inet_ntop(socket.AF_INET6, found[i : i + 16]) for i in range(0, len(found), 16)]
    return []
