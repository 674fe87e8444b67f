"""The formats of `embargo export`, and what each can never express; `render` has their writers."""

from typing import NamedTuple


class Format(NamedTuple):
    """`lacks`: what the format cannot express, whatever the policy is."""

    comment: str  # starts a comment line
    lacks: tuple[str, ...]


_ANSWERS = "names and addresses in answers: aliases and other targets are not checked"
_LOCAL_NAT64 = "IPv6 addresses in 64:ff9b:1::/48 that embed a listed IPv4 address"
_BLOCK_MODE = "the block mode: the other software has its own"

FORMATS = {
    "rpz": Format(";", (
        "MX, SRV, NS, SVCB and HTTPS targets in answers", "checks of the answers to an app's exceptions: they pass",
        _LOCAL_NAT64, "with Unbound, IPv4-mapped IPv6 addresses",
    )),
    "hosts": Format("#", (_ANSWERS,)),
    "domains": Format("#", (_ANSWERS, _BLOCK_MODE)),
    "dnsmasq": Format("#", ("names in answers", _LOCAL_NAT64, "the block mode for listed addresses")),
    "unbound": Format("#", (_ANSWERS,)),
    "adblock": Format("!", (_BLOCK_MODE,)),
    "nft": Format("#", (
        "names, and addresses learnt from them", "the interception of port 53",
        "blocked ports 53 and 853 for the machine's own queries",
    )),
}  # fmt: skip
