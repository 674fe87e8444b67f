"""The share of a client in the event log, and what a resolver remembers of attempts, by whichever path they were counted."""

import time
from pathlib import Path

import pytest

from embargo.events import WINDOW
from support.playbook import query
from support.worker import Worker

BLOCKED = "alipay.example"
ONE, OTHER = "127.0.0.2", "127.0.0.3"
NAMES = 1000


def flood(worker: Worker, source: str, names: int) -> None:
    """Ask for so many blocked names from this address, fifty at once: fewer than a socket holds."""
    packets = [query(f"n{number}.{BLOCKED}") for number in range(names)]
    with worker.udp(source=source) as sock:
        for first in range(0, names, 50):
            for packet in packets[first : first + 50]:
                sock.send(packet)
            for _ in packets[first : first + 50]:
                assert sock.recv(4096)[3] & 15 == 3


@pytest.mark.parametrize("accelerated", ["native", "none"])
@pytest.mark.parametrize("log_names", ["blocked", "none"])
def test_one_client_does_not_fill_the_log(accelerated: str, log_names: str) -> None:
    with Worker(accelerated=accelerated) as worker:
        worker.start(BLOCKED, dns={"log_names": log_names})
        began = time.monotonic()
        flood(worker, ONE, NAMES)
        flood(worker, OTHER, 3)
        shares = 1 + int((time.monotonic() - began) / WINDOW)  # on a machine that stood still
        events = worker.stop()
        mine = [event for event in events if event["client"] == ONE]
        assert sum(event["count"] for event in events) == NAMES + 3
        if log_names == "none":
            assert len(mine) <= 4, "they are equal"
        else:
            assert 401 <= len(mine) < 600 * shares
            further = [event for event in mine if "others" in event]
            assert sum(event["count"] for event in further) >= NAMES - 450 * shares
            assert {(event["list"], event["line"], event["rule"]) for event in further} == {("alipay/payment.list", 1, BLOCKED)}
            assert not any("qname" in event or "qtype" in event for event in further)
        assert sum(event["count"] for event in events if event["client"] == OTHER) == 3


def rss(pid: int) -> int:
    """KiB."""
    return next(
        int(line.split()[1]) for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("VmRSS")
    )


def test_a_resolver_remembers_no_more_for_more_clients_and_names() -> None:
    """What 200 addresses ask is remembered as their network's share allows, once it is full."""
    with Worker() as worker:
        worker.start(BLOCKED)
        sizes = []
        for first in (2, 42, 82, 122, 162):
            for last in range(first, first + 40):
                flood(worker, f"127.0.0.{last}", 100)
            sizes.append(rss(worker.process.pid))
        assert sizes[-1] - sizes[0] < 3000, sizes
