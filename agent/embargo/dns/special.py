"""Special-use names: answered here whatever a list says, and never sent on.

RFC 6761 (localhost, invalid, reverse names of private addresses), 6762 (local), 7686 (onion), 8375 (home.arpa), 6303 and 7793
(reverse names of addresses that do not exist on the Internet), 9462 (resolver.arpa). `test` is not among them: the servers
asked here are configured ones, not the root, and test networks use it.
"""

from collections.abc import Container
from enum import Enum

from embargo import names
from embargo.dns import message
from embargo.names import Name

SOURCES = "RFC 6303, 6761, 6762, 7686, 7793, 8375, 9462"  # for messages


class Special(Enum):
    """What a special-use name is answered with."""

    NODATA = "no data", message.NOERROR
    LOOPBACK = "loopback addresses", message.NOERROR
    LOCALHOST = "the name localhost", message.NOERROR  # unless a local record has the reverse name
    NXDOMAIN = "no such name", message.NXDOMAIN  # unless a local record has the name

    @property
    def rcode(self) -> int:
        """The rcode of the answer, where no local record has the name."""
        return self.value[1]


def _zones(*texts: str) -> frozenset[Name]:
    return frozenset(map(names.from_text, texts))


_RESOLVER = _zones("resolver.arpa")  # a resolver without designated resolvers answers NODATA (RFC 9462 section 6.4)
_LOCALHOST = _zones("localhost")  # RFC 6761 section 6.3
_NONEXISTENT = _zones(
    "invalid", "onion", "local", "home.arpa",  # RFC 6761 section 6.4, 7686, 6762, 8375
    "10.in-addr.arpa", "168.192.in-addr.arpa", *(f"{n}.172.in-addr.arpa" for n in range(16, 32)),  # RFC 6761 section 6.1
    # RFC 6303: this network, loopback, link-local, documentation, broadcast; unspecified and loopback, local and documentation
    "0.in-addr.arpa", "127.in-addr.arpa", "254.169.in-addr.arpa", "2.0.192.in-addr.arpa", "100.51.198.in-addr.arpa",
    "113.0.203.in-addr.arpa", "255.255.255.255.in-addr.arpa", "0." * 32 + "ip6.arpa", "1." + "0." * 31 + "ip6.arpa",
    "d.f.ip6.arpa", *(f"{n}.e.f.ip6.arpa" for n in "89ab"), "8.b.d.0.1.0.0.2.ip6.arpa",
    *(f"{n}.100.in-addr.arpa" for n in range(64, 128)),  # RFC 7793: shared by carriers
)  # fmt: skip
_LOOPBACK_REVERSE = _zones("1.0.0.127.in-addr.arpa", "1." + "0." * 31 + "ip6.arpa")
#: every special-use name ends in one of these octets; most names that do not are recognised by that alone
ENDINGS = tuple(map(bytes, sorted(_zones("localhost", "invalid", "local", "onion", "arpa"))))


def kind(qname: Name, forward: Container[Name]) -> Special | None:
    """What a name is answered with if it is a special-use name, None for all others.

    `forward`: zones with servers of their own ([dns] forward). A name in one of them is asked there, except `resolver.arpa`,
    which speaks of this resolver.
    """
    if not qname.endswith(ENDINGS):  # nearly always
        return None
    for suffix in names.suffixes(qname):
        if suffix in _RESOLVER:
            return Special.NODATA
        if suffix in forward:
            return None
        if suffix in _LOCALHOST:
            return Special.LOOPBACK
        if suffix in _LOOPBACK_REVERSE and suffix == qname:
            return Special.LOCALHOST
        if suffix in _NONEXISTENT:
            return Special.NXDOMAIN
    return None
