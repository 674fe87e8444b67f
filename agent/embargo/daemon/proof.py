"""Proof that clients are answered, for systemd's watchdog: a real query to a real socket."""

import os
import socket

from embargo import message
from embargo.daemon.endpoints import Endpoint
from embargo.fastpath import Acl

SECONDS = 2.0
_QUESTION = b"\x09localhost\0\0\1\0\1"  # answered without anybody else, and never logged (RFC 6761)
_ANY = {"0.0.0.0": "127.0.0.1", "::": "::1"}


def may_ask(endpoint: Endpoint, acl: Acl) -> bool:
    """Would a query from this machine be answered there? It comes from the very address that it goes to."""
    address = endpoint.address.partition("%")[0]
    return acl.allows(_ANY.get(address, address))


def answered(endpoint: Endpoint) -> bool:
    """Does one of the resolvers behind this socket answer? It blocks for SECONDS at most."""
    address, _, scope = endpoint.address.partition("%")
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    query = message.HEADER.pack(int.from_bytes(os.urandom(2)), message.RD, 1, 0, 0, 0) + _QUESTION
    with socket.socket(family, socket.SOCK_DGRAM) as sock:
        sock.settimeout(SECONDS)
        try:
            at = (_ANY.get(address, address), endpoint.port)
            sock.connect(at if family == socket.AF_INET else (*at, 0, socket.if_nametoindex(scope) if scope else 0))
            sock.send(query)
            reply = sock.recv(512)
        except OSError:
            return False
    return reply[:2] == query[:2] and bool(reply[2] & 0x80) and reply[message.HEADER.size :].startswith(_QUESTION)
