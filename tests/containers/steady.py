"""A client that asks and connects all the time, and an eye on the table, while something is done to the gateway."""

import contextlib
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import NamedTuple

from containers.conftest import GATEWAY, LISTED, Site
from support.lab import Container

RATE = 1000  # queries a second: what a busy machine still answers, and sockets hold while nobody reads them

#: queries at an even rate from many ports, every id of a port once, until a file is there or two minutes are over; says how
#: many were sent, how many had no answer within five seconds, and how many another one than NXDOMAIN
_LOAD = r"""
import os, select, socket, sys, time
server, rate, stop = sys.argv[1], int(sys.argv[2]), sys.argv[3]
query = bytes(2) + b"\1\0\0\1" + bytes(6) + b"\4mygw\6alipay\3com\0\0\1\0\1"
socks = [socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(50)]
for sock in socks:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
    sock.connect((server, 53))
    sock.setblocking(False)
poll, sent, answered, wrong, began = select.poll(), 0, set(), 0, time.monotonic()
for sock in socks:
    poll.register(sock, select.POLLIN)
by_fd = {sock.fileno(): sock for sock in socks}
def take(milliseconds):
    global wrong
    for fd, _ in poll.poll(milliseconds):
        try:
            while True:
                reply = by_fd[fd].recv(512)
                answered.add((fd, reply[:2]))
                wrong += reply[3] & 15 != 3
        except (BlockingIOError, ConnectionRefusedError):
            pass
while not os.path.exists(stop) and time.monotonic() < began + 120:
    while sent < (time.monotonic() - began) * rate:
        try:
            socks[sent % 50].send((sent // 50).to_bytes(2) + query[2:])
        except ConnectionRefusedError:
            pass
        sent += 1
    take(1)
end = time.monotonic() + 5
while len(answered) < sent and time.monotonic() < end:
    take(50)
print(sent, sent - len(answered), wrong)
"""

#: connections to an address, one after the other; says how many were tried, and how many came about
_CONNECT = r"""
import os, socket, sys, time
address, stop, tried, opened, began = sys.argv[1], sys.argv[2], 0, 0, time.monotonic()
while not os.path.exists(stop) and time.monotonic() < began + 120:
    tried += 1
    try:
        socket.create_connection((address, 80), 1).close()
        opened += 1
    except OSError:
        pass
    time.sleep(0.005)
print(tried, opened)
"""

#: looks at the table every three milliseconds until its input ends; says how often it looked, and saw no chain with a hook
_LOOK = r"""
import select, sys
from embargo.daemon.host.nftables import Nftables
kernel, looks, missing = Nftables(), 0, 0
while not select.select([sys.stdin], [], [], 0.003)[0]:
    looks += 1
    missing += not any(kernel.chains("embargo").values())
print(looks, missing)
"""


class Seen(NamedTuple):
    """What came of it; to be looked at when the context has ended."""

    sent: int
    lost: int
    wrong: int
    tried: int
    opened: int
    looks: int
    missing: int


@contextlib.contextmanager
def watched(site: Site, gateway: Container, seconds: float, rate: int = RATE) -> Iterator[list[Seen]]:
    """Queries for a blocked name, connections to a listed address and looks at the table, for so long at least."""
    stop = "/tmp/steady.stop"
    site.client.path(stop).unlink(missing_ok=True)
    for name, script in (("load", _LOAD), ("connect", _CONNECT)):
        site.client.path(f"/tmp/{name}.py").write_text(script)
    began, seen = time.monotonic(), list[Seen]()
    looking = subprocess.Popen(
        ["nsenter", f"--net=/proc/{gateway.pid}/ns/net", sys.executable, "-c", _LOOK],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    started = [
        site.client.start("sh", "-c", f"python3 /tmp/load.py {GATEWAY} {rate} {stop} >/tmp/load.out 2>&1"),
        site.client.start("sh", "-c", f"python3 /tmp/connect.py {LISTED} {stop} >/tmp/connect.out 2>&1"),
    ]
    try:
        time.sleep(1.0)  # it is under way
        yield seen
        time.sleep(max(began + seconds - time.monotonic(), 0.5))
    finally:
        site.client.path(stop).write_text("")
        told = [looking.communicate("", timeout=60)[0]]
        for process in started:
            process.wait(60)
    told[:0] = [site.client.path(f"/tmp/{name}.out").read_text() for name in ("load", "connect")]
    try:
        seen.append(Seen(*map(int, " ".join(told).split())))
    except (TypeError, ValueError):
        raise AssertionError(f"not what was expected of the clients: {told}") from None


def assert_nothing_missed(seen: list[Seen], seconds: float) -> None:
    """Every query had its answer, which was a block; no connection came about; the table was there at every look."""
    (found,) = seen
    assert found.sent > RATE * seconds / 2, found
    assert found.tried > 20, found
    assert found.looks > 50 * seconds, found
    assert (found.lost, found.wrong, found.opened, found.missing) == (0, 0, 0, 0), found
