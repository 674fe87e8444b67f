"""Prints the first of the given ports that is free on loopback, UDP and TCP, IPv4 and IPv6: tools.freeport PORT…"""

import errno
import socket
import sys


def free(port: int) -> bool:
    """Can all four be bound? Where IPv6 is off, its two do not count."""
    taken = (errno.EADDRINUSE, errno.EACCES)
    for family, address in ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")):
        for kind in (socket.SOCK_DGRAM, socket.SOCK_STREAM):
            try:
                with socket.socket(family, kind) as sock:
                    if kind == socket.SOCK_STREAM:
                        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                    sock.bind((address, port))
            except OSError as error:
                if error.errno in taken:
                    return False
    return True


def main() -> None:
    ports = list(map(int, sys.argv[1:]))
    found = next(filter(free, ports), None)
    if found is None:
        sys.exit(f"none of the ports {', '.join(map(str, ports))} is free on loopback; set [dns] listen in run/embargo.toml")
    print(found)


if __name__ == "__main__":
    main()
