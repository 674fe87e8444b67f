"""What one client does to the others, in a process of its own: python -m tools.bench.floods NAME PORT BLOCKED

Each flood runs until the process is ended. BLOCKED is a name on the list of the server.
"""

import contextlib
import itertools
import os
import selectors
import socket
import sys
import time
from collections.abc import Callable, Iterable
from functools import partial

from tools.bench.servers.base import ADDRESS

SOURCE = "127.0.1.1"  # of the floods; the idle connections come from this and the next 19 addresses
WRITERS, BURST = 45, 128 << 10  # connections, and octets of queries written into each before any answer is read
IDLERS, IDLER_ADDRESSES = 1000, 20


def query(name: str, kind: int = 1) -> bytes:
    """A query with a random message ID, recursion desired."""
    question = b"".join(bytes([len(label)]) + label for label in name.encode().split(b".")) + b"\0" + kind.to_bytes(2) + b"\0\1"
    return os.urandom(2) + b"\1\0\0\1\0\0\0\0\0\0" + question


def _paced(port: int, rate: float, queries: Iterable[bytes]) -> None:
    """Send queries over UDP at this rate, in queries per second, and take what comes back."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind((SOURCE, 0))
        sock.connect((ADDRESS, port))
        sock.setblocking(False)
        began = time.monotonic()
        for number, each in enumerate(queries):
            ahead = began + number / rate - time.monotonic()
            if ahead > 0.001:
                time.sleep(ahead)
            _attempt(partial(sock.send, each))
            while _attempt(partial(sock.recv, 65535)):
                pass


def _attempt(call: Callable[[], object]) -> object:
    try:
        return call()
    except OSError:  # a full or an empty buffer
        return None


def _names(pattern: str, kind: int = 1) -> Iterable[bytes]:
    return (query(pattern.format(number), kind) for number in itertools.count())


def tcp_bursts(port: int, blocked: str) -> None:
    """Write BURST octets of queries into each of WRITERS connections, read all answers, and begin again."""
    one = query(blocked)
    burst = (len(one).to_bytes(2) + one) * (BURST // (len(one) + 2))
    with selectors.DefaultSelector() as selector:
        for _ in range(WRITERS):
            sock = socket.create_connection((ADDRESS, port), source_address=(SOURCE, 0))
            sock.setblocking(False)
            selector.register(sock, selectors.EVENT_READ | selectors.EVENT_WRITE, [burst])
        while selector.get_map():
            for key, _ in selector.select():
                _write_and_read(selector, key, burst)


def _write_and_read(selector: selectors.BaseSelector, key: selectors.SelectorKey, burst: bytes) -> None:
    sock, left = key.fileobj, key.data
    assert isinstance(sock, socket.socket)
    try:
        left[0] = left[0][sock.send(left[0]) :] or burst
    except BlockingIOError:
        pass
    except OSError:
        selector.unregister(sock)
        return
    try:
        if not sock.recv(1 << 16):
            selector.unregister(sock)
    except BlockingIOError:
        pass
    except OSError:
        selector.unregister(sock)


def idle_connections(port: int, blocked: str) -> None:
    """Open IDLERS connections from IDLER_ADDRESSES addresses and send nothing."""
    first = int.from_bytes(socket.inet_aton(SOURCE))
    sources = [socket.inet_ntoa((first + number).to_bytes(4)) for number in range(IDLER_ADDRESSES)]
    held = []
    for number in range(IDLERS):
        with contextlib.suppress(OSError):  # refused, or not accepted in time
            held.append(socket.create_connection((ADDRESS, port), 0.2, (sources[number % IDLER_ADDRESSES], 0)))
    while True:
        time.sleep(60)


def blocked_udp(port: int, blocked: str) -> None:
    """A blocked name, 20,000 a second."""
    _paced(port, 20_000, _names(f"a{{}}.{blocked}"))


def silent_zone(port: int, blocked: str) -> None:
    """Names that the upstream never answers, 600 a second."""
    _paced(port, 600, _names("n{}.silent.example"))


def silent_zone_fast(port: int, blocked: str) -> None:
    """Names that the upstream never answers, 3,000 a second."""
    _paced(port, 3000, _names("n{}.silent.example"))


def failing_name(port: int, blocked: str) -> None:
    """One name for which the upstream says SERVFAIL, 2,000 a second."""
    _paced(port, 2000, _names("same.failing.example"))


def random_names(port: int, blocked: str) -> None:
    """Names that nobody asked for before, 3,000 a second, all answered by the upstream."""
    _paced(port, 3000, _names("n{}.stranger.example"))


def large_answer(port: int, blocked: str) -> None:
    """A cached answer that fits no UDP packet, 500 a second."""
    _paced(port, 500, _names("large.example", kind=15))


FLOODS: dict[str, Callable[[int, str], None]] = {
    "bursts in 45 TCP connections": tcp_bursts,
    "1,000 idle TCP connections": idle_connections,
    "20,000 blocked names/s": blocked_udp,
    "600 names/s of a silent zone": silent_zone,
    "3,000 names/s of a silent zone": silent_zone_fast,
    "2,000 queries/s for a failing name": failing_name,
    "3,000 new names/s": random_names,
    "500 queries/s for 501 records": large_answer,
}

if __name__ == "__main__":
    FLOODS[sys.argv[1]](int(sys.argv[2]), sys.argv[3])
