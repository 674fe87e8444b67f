"""The address from which a server is asked: the kernel chooses it when a socket is connected, and the socket keeps it.

When the addresses or routes of this machine change, the sockets that exist go on with the old address: what they send fails,
or its answer goes elsewhere.
"""

import contextlib
import socket

from embargo.dns.upstream import Server


def connected(server: Server) -> socket.socket:
    """A UDP socket connected to a server, whose port the kernel chooses at random. OSError: there is no way to the server."""
    address, _, scope = server.address.partition("%")
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
    try:
        if family == socket.AF_INET6:
            sock.connect((address, server.port, 0, socket.if_nametoindex(scope) if scope else 0))
        else:
            sock.connect((address, server.port))
    except OSError:
        sock.close()
        raise
    return sock


def source(server: Server) -> str:
    """The address from which a new socket asks this server, over UDP or TCP; empty when there is no way to it."""
    with contextlib.suppress(OSError), connected(server) as sock:
        return str(sock.getsockname()[0])
    return ""
