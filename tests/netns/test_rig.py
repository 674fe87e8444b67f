"""The rig itself: nothing of it is left, whatever happens to who made it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tools.rig import OTHER4, OTHER6, WEB4, WEB6, Rig, until

pytestmark = pytest.mark.root

TOP = Path(__file__).parent.parent.parent
_KILLED = """
import os, signal
from tools.rig import Rig
rig = Rig()
rig.__enter__()
rig.serve_web()
names = [rig.prefix(role)[3] for role in ("client", "gateway", "internet")]
print(rig.start("client", "sleep", "1000").pid, rig.directory, *names, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


def namespaces() -> set[str]:
    return set(os.listdir("/run/netns")) if os.path.isdir("/run/netns") else set()


def test_nothing_is_left_of_a_rig() -> None:
    with Rig() as rig:
        rig.serve_web()
        process = rig.start("client", "sleep", "1000")
        names = {rig.prefix(role)[3] for role in ("client", "gateway", "internet")}
        directory = rig.directory
        assert names <= namespaces()
    assert process.poll() is not None
    assert not names & namespaces()
    assert not directory.exists()


def test_a_rig_whose_maker_was_killed_goes_with_the_next_one() -> None:
    run = subprocess.run([sys.executable, "-c", _KILLED], cwd=TOP, capture_output=True, text=True, timeout=60, check=False)
    pid, directory, *names = run.stdout.split()
    assert len(names) == 3, "it stood, as far as asking a server in it"
    until(lambda: not Path(f"/proc/{pid}").exists(), "its processes die with it")
    with Rig() as other:
        assert other.prefix("client")[3] in namespaces()
        assert not set(names) & namespaces()
        assert not Path(directory).exists()


def test_two_rigs_stand_side_by_side() -> None:
    with Rig() as one, Rig() as two:
        one.serve_web()
        assert one.reach("client", WEB4) == "open"
        assert two.reach("client", WEB4) == "refused"


def test_a_command_that_fails_says_why() -> None:
    with Rig() as rig, pytest.raises(RuntimeError, match=r"ip link show nowhere: status 1: .*nowhere"):
        rig.run("client", "ip", "link", "show", "nowhere")


def test_the_upstream_has_addresses_aliases_and_service_bindings() -> None:
    """HTTPS records are given to dnsmasq as octets: priority 1, target svc.test (RFC 9460)."""
    with Rig() as rig:
        rig.serve_dns("host-record=a.test,203.0.113.7", "cname=b.test,a.test", "dns-rr=c.test,65,000103737663047465737400")
        for server, transport in ((OTHER4, "+notcp"), (OTHER4, "+tcp"), (OTHER6, "+notcp"), (OTHER6, "+tcp")):
            ask = ("client", f"@{server}", transport)
            assert rig.dig(*ask, "b.test").answers == ("CNAME a.test.", "A 203.0.113.7")
            assert rig.dig(*ask, "c.test", "HTTPS").answers[0].startswith(("HTTPS 1 svc.test.", "TYPE65"))
            assert rig.dig(*ask, "any.example").answers == (f"A {WEB4}",)
            assert rig.dig(*ask, "any.example", "AAAA").answers == (f"AAAA {WEB6}",)


def test_there_is_no_way_out() -> None:
    """Every route of the internet's is to itself, to the gateway or through it: what it does not own ends there."""
    with Rig() as rig:
        for family in ("-4", "-6"):
            assert rig.run("internet", "ip", family, "route", "show", "default").stdout == ""
        names = rig.run("internet", "ls", "/sys/class/net").stdout.split()
        assert {"eth0", "lo"} <= set(names)
        assert rig.reach("client", "2001:db8:ffff::1", seconds=0.2) in ("silent", "unreachable")
