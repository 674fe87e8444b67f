"""dnsperf sends packets as they are, over UDP and TCP: queries in which octets are changed, among queries that are right."""

import random
import subprocess
from collections.abc import Iterator
from pathlib import Path

import dns.message
import pytest

from support.agent import Agent, running
from tools.bench import measure

pytestmark = pytest.mark.all

PACKETS = 4_000
SEED = 2026


@pytest.fixture
def agent(tmp_path: Path) -> Iterator[Agent]:
    with running(tmp_path, dns={"workers": 2}) as started:
        yield started


def packets(directory: Path) -> tuple[Path, int]:
    """A file of packets, each behind its length (the format of DNS over TCP), and how many of them are right."""
    draw = random.Random(SEED)
    path, right = directory / "packets", 0
    with path.open("wb") as file:
        for number in range(PACKETS):
            query = bytearray(dns.message.make_query(f"n{number % 50}.alipay.example", "A", use_edns=number % 2 - 1).to_wire())
            if number % 4:
                for _ in range(draw.randint(1, 6)):
                    query[draw.randrange(2, len(query))] = draw.randrange(256)
                del query[draw.randint(12, len(query)) if number % 3 == 0 else len(query) :]
            else:
                right += 1
            file.write(len(query).to_bytes(2) + query)
    return path, right


@pytest.mark.parametrize("mode", ["udp", "tcp"])
def test_octets_that_are_changed_harm_nobody(agent: Agent, tmp_path: Path, mode: str) -> None:
    path, right = packets(tmp_path)
    command = [
        "dnsperf", "-s", "127.0.0.1", "-p", str(agent.port), "-m", mode, "-B", "-d", str(path), "-n", "1", "-t", "2",
        "-q", "1000", "-W",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    said = measure.parse(done.stdout)
    if mode == "udp":  # over TCP a packet that cannot be answered ends the connection, with what is sent on it later
        assert said.rcodes.get("NXDOMAIN", 0) >= right
    assert agent.answer("status")["worker_restarts"] == 0
    assert agent.blocked("www.alipay.example")
