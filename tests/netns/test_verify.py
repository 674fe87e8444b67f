"""`embargo verify` on a gateway: what it proves, what it finds, what it leaves behind."""

import re
from collections.abc import Iterator
from typing import Any

import pytest

from support.agent import Agent, running
from tools.rig import UPSTREAM4, Rig

pytestmark = pytest.mark.root

APPS = {
    "alipay": {
        "payment": ["alipay.example", "!mail.alipay.example", "203.0.113.200/29", "203.0.113.7", "2001:db8:99::/48"],
        "telemetry": ["=log.test", "203.0.113.77"],
        "httpdns": ["httpdns.test", "203.0.113.98", "2001:db8:98::1"],
    },
    "bypass": {"canary": ["use-application-dns.net"], "relay": ["mask.icloud.com"], "doh": ["dns.test", "203.0.113.99"]},
}
#: everything about the machine that a run could leave something in
STATE = (
    "ip -o link", "ip -o address", "ip rule", "ip -6 rule", "ip route show table all", "ip -6 route show table all",
    "ip neighbour show nud permanent", "nft list tables",
)  # fmt: skip


@pytest.fixture(scope="module")
def rig() -> Iterator[Rig]:
    with Rig() as made:
        made.serve_dns("local=/test/")
        yield made


@pytest.fixture(scope="module")
def agent(rig: Rig, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Agent]:
    sections = {
        "dns": {"listen": ["127.0.0.1:53", "[::1]:53"], "upstream": [UPSTREAM4], "workers": 1},
        "firewall": {"enabled": True, "lan": ["lan0"], "on_stop": "remove"},
    }
    with running(tmp_path_factory.mktemp("verify"), prefix=rig.prefix("gateway"), apps=APPS, **sections) as started:
        yield started


def state(rig: Rig) -> str:
    """Without what differs by itself: ages and counts."""
    shown = "\n".join(rig.run("gateway", *command.split()).stdout for command in STATE)
    return re.sub(r" expires \d+sec| users \d+| age \d+| used [\d/]+", "", shown)


def rows(told: Any, **members: object) -> list[Any]:
    return [row for row in told["rows"] if all(row[key] == value for key, value in members.items())]


def test_everything_is_held(rig: Rig, agent: Agent) -> None:
    told = agent.told("verify")
    print(agent.cli("verify").stdout)
    assert (told["ok"], told["leaks"], told["unproven"], told["notes"]) == (True, 0, 0, [])
