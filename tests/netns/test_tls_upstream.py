"""An upstream over TLS on a gateway whose firewall closes that way for everybody else."""

from pathlib import Path

import pytest

from support.agent import running
from support.secure import NAME, Authority, Unbound
from tools.rig import LAN4, OTHER4, UPSTREAM4, Rig, until

pytestmark = pytest.mark.root

LISTED = "203.0.113.99"  # a resolver that clients may not use
APPS = {"alipay": {"payment": ["alipay.example"]}, "bypass": {"doh": [LISTED]}}


def shows_a_certificate(rig: Rig, address: str) -> bool:
    """To a client that speaks TLS."""
    return "BEGIN CERTIFICATE" in rig.run("client", "openssl", "s_client", "-connect", f"{address}:853", check=False).stdout


def own_port(rig: Rig) -> str:
    """Where our connection to the upstream comes from."""
    out = rig.run("gateway", "ss", "-Htn", "state", "established", "dport", "=", "853").stdout
    (line,) = out.splitlines()
    return str(line.split()[2])


def test_our_questions_pass_and_a_clients_do_not(tmp_path: Path) -> None:
    """The upstream is even in a list. A policy that changes leaves our connection alone."""
    authority = Authority(tmp_path)
    pair = authority.sign("server")
    authority.own.certificate.chmod(0o600)  # for root alone: the resolvers, another user, are given what is in it
    sections = {
        "dns": {
            "listen": ["127.0.0.1:53"], "upstream": [f"tls://{LISTED}#{NAME}"], "workers": 1,
            "tls_ca": str(authority.own.certificate),
        },
        "firewall": {"enabled": True, "lan": ["lan0"], "on_stop": "remove"},
    }  # fmt: skip
    records = ("leads.zone.test. 300 IN CNAME pay.alipay.example.",)
    with Rig() as rig, Unbound(tmp_path, pair, 853, records, rig.prefix("internet")):
        rig.serve_dns(default=("192.0.2.81",))  # who would ask in clear would get another answer
        until(lambda: shows_a_certificate(rig, OTHER4), "the upstream answers, and clients reach it")
        with running(tmp_path, prefix=rig.prefix("gateway"), apps=APPS, **sections) as agent:
            assert rig.dig("client", f"@{LAN4}.1", "free.test").answers == ("A 192.0.2.80",)
            for address in (OTHER4, LISTED, UPSTREAM4):
                assert not shows_a_certificate(rig, address)
                assert rig.reach("client", address, 853) == "refused"
            assert rig.reach("gateway", LISTED, 853) == "refused", "it is open for our resolvers' user alone"
            before = own_port(rig)
            agent.cli("block", "198.51.100.128/25", "more.example")
            assert rig.dig("client", f"@{LAN4}.1", "other.test").answers == ("A 192.0.2.80",)
            assert rig.dig("client", f"@{LAN4}.1", "leads.zone.test").rcode == "NXDOMAIN"
            assert own_port(rig) == before
            (row,) = agent.answer("status")["upstreams"]
            assert (row["server"], row["failed"]) == (f"tls://{LISTED}:853#{NAME}", 0)
