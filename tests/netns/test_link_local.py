"""Clients with a link-local address, which means something on one interface only, whatever that one's name is."""

import socket

import dns.message
import dns.rcode
import pytest

from support.playbook import query
from support.worker import Worker
from tools.rig import Rig, until

pytestmark = pytest.mark.root

INTERFACE = 'l"\u00e9'  # the kernel forbids whitespace, slashes and colons


def link_local(rig: Rig, role: str, interface: str) -> str:
    return rig.run(role, "ip", "-6", "-o", "address", "show", "dev", interface, "scope", "link").stdout.split()[3].split("/")[0]


@pytest.mark.parametrize("accelerated", ["native", "none"])
@pytest.mark.parametrize("address", ["::", "link-local"])
def test_a_link_local_client_is_known_by_its_address_alone(accelerated: str, address: str) -> None:
    with Rig() as rig:
        rig.run("gateway", "ip", "link", "set", "lan0", "name", INTERFACE)
        ours, theirs = link_local(rig, "gateway", INTERFACE), link_local(rig, "client", "eth0")
        scope = rig.within("gateway", lambda: socket.if_nametoindex(INTERFACE))
        listening = rig.socket("gateway", socket.SOCK_DGRAM, ours)
        listening.bind(("::", 53) if address == "::" else (ours, 53, 0, scope))
        with (
            Worker(sockets=[listening], accelerated=accelerated) as worker,
            rig.socket("client", socket.SOCK_DGRAM, theirs) as sock,
        ):
            worker.start("alipay.example", dns={"allow_from": ["fe80::/10"]})
            sock.settimeout(5)
            sock.connect((ours, 53, 0, rig.within("client", lambda: socket.if_nametoindex("eth0"))))
            for name, rcode in (("alipay.example", dns.rcode.NXDOMAIN), ("free.test", dns.rcode.SERVFAIL)) * 2:
                sock.send(query(name))
                assert dns.message.from_wire(sock.recv(4096)).rcode() == rcode
            until(lambda: worker.stats()["counters"]["queries_udp"] == 4, "each was taken once")
            assert {event["client"] for event in worker.stop()} == {theirs}
