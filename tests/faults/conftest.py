"""One network for all tests of faults, and a new agent for each test."""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from support.agent import Agent, running
from support.load import APPS, LISTED4, LISTED6
from tools.rig import UPSTREAM4, Rig

#: listed names with an address of their own: where all others lead is never learnt
BEHIND = {"pay.alipay.example": "203.0.113.66", "more.alipay.example": "203.0.113.67"}

Start = Callable[..., contextlib.AbstractContextManager[Agent]]


@pytest.fixture(scope="session")
def faulty() -> Iterator[Rig]:
    with network() as rig:
        yield rig


@contextlib.contextmanager
def network() -> Iterator[Rig]:
    with Rig() as made:
        made.own("2001:db8:99::/48")
        made.serve_dns("local-ttl=300", *(f"host-record={name},{address}" for name, address in BEHIND.items()))
        made.serve_web()
        for address in (LISTED4, LISTED6):
            assert made.reach("client", address, 8080, udp=True) == "open", "before anybody runs"
        yield made


def gateway(**changes: Any) -> dict[str, dict[str, Any]]:
    """The configuration of a gateway, with these sections changed."""
    sections: dict[str, dict[str, Any]] = {
        "dns": {"listen": ["127.0.0.1:53"], "upstream": [UPSTREAM4], "workers": 2},
        "firewall": {"enabled": True, "lan": ["lan0"], "on_stop": "remove", "log_group": 8700},
    }
    for name, values in changes.items():
        sections.setdefault(name, {}).update(values)
    return sections


@pytest.fixture
def start(faulty: Rig, tmp_path: Path) -> Start:
    """An agent on the gateway, with these sections of the configuration changed."""

    def started(root: Path = tmp_path, **changes: Any) -> contextlib.AbstractContextManager[Agent]:
        return running(root, prefix=faulty.prefix("gateway"), apps=APPS, **gateway(**changes))

    return started
