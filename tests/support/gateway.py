"""An agent on a gateway, with a client on one side and an internet on the other: its lists, and the names of that internet."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

from support.agent import Agent
from tools.rig import LAN4, LAN6, UPSTREAM4, Rig

GATEWAY4, GATEWAY6 = f"{LAN4}.1", f"{LAN6}:1"
TRANSPORTS = ("+notcp", "+tcp")  # words for dig
LISTED4, LISTED6 = "203.0.113.200", "2001:db8:99::7"

APPS = {
    "alipay": {
        "payment": ["alipay.example  # evidence", "!mail.alipay.example  # evidence", "203.0.113.200/29", "2001:db8:99::/48"],
        "telemetry": ["=log.test", "203.0.113.77"],
    },
    "bypass": {"canary": ["use-application-dns.net"], "relay": ["mask.icloud.com"], "doh": ["dns.test", "203.0.113.99"]},
}
RECORDS = (
    "local=/test/",
    "cname=cloaked.test,edge.alipay.example", "host-record=edge.alipay.example,203.0.113.20",
    "host-record=leads.test,203.0.113.201", "host-record=leads6.test,2001:db8:99::5",
    "mx-host=mail.test,mx.alipay.example,10", "host-record=free.test,203.0.113.21,2001:db8:3::21",
    "txt-record=free.test,hello", "host-record=deep.log.test,203.0.113.22",
)  # fmt: skip


@contextlib.contextmanager
def internet() -> Iterator[Rig]:
    """A rig whose internet has these names, and two networks with a web server at each address."""
    with Rig() as made:
        made.own("2001:db8:99::/48", "2001:db8:9a::/48")
        made.serve_dns(*RECORDS)
        made.serve_web()
        yield made


def gateway_agent(rig: Rig, root: Path, **firewall: object) -> Agent:
    """An agent on the gateway, not started yet; its files are below `root`."""
    made = Agent(root, rig.prefix("gateway"), APPS)
    made.port = 53
    made.write_config(
        dns={"listen": ["127.0.0.1:53"], "upstream": [UPSTREAM4], "workers": 1},
        firewall={"enabled": True, "lan": ["lan0"], "log_group": 8200, **firewall},
    )
    return made


def has_event(agent: Agent, kind: str, **members: object) -> bool:
    """Whether the agent has logged an event of this kind with these values."""
    return any(all(event.get(key) == value for key, value in members.items()) for event in agent.events(kind))
