"""Beside systemd-resolved: its servers are asked, never its stub; where it holds our port, it is named, and what to do."""

from pathlib import Path

import pytest

from containers.conftest import UPSTREAM, WEB, Site, install, status_of
from support.lab import TOP, Container
from tools.rig import until

pytestmark = pytest.mark.root

SHIPPED = (TOP / "tools/debian/embargo.toml").read_text()
DROP_IN = "/etc/systemd/resolved.conf.d/test.conf"


def resolved(gateway: Container, *lines: str) -> None:
    """systemd-resolved with these settings, and the machine's resolv.conf as it wants it."""
    conf = gateway.path(DROP_IN)
    conf.parent.mkdir(parents=True, exist_ok=True)
    conf.write_text("\n".join(("[Resolve]", "DNSSEC=no", *lines, "")))
    gateway.run("ln", "-sf", "/run/systemd/resolve/stub-resolv.conf", "/etc/resolv.conf")
    gateway.run("systemctl", "enable", "systemd-resolved")
    gateway.run("systemctl", "restart", "systemd-resolved")


def asked(gateway: Container) -> set[str]:
    return {row["server"].removeprefix("udp://").removesuffix(":53") for row in status_of(gateway)["upstreams"]}


def answers(gateway: Container, server: str = "127.0.0.1") -> bool:
    done = gateway.run("dig", f"@{server}", "+short", "+tries=1", "+time=3", "www.example.net", check=False)
    return WEB in done.stdout


def blocks(gateway: Container, server: str = "127.0.0.1") -> bool:
    out = gateway.run("dig", f"@{server}", "+tries=1", "+time=3", "mygw.alipay.com", check=False).stdout
    return "status: NXDOMAIN" in out


@pytest.fixture
def bare(bare: Container) -> Container:
    """Where the package has never been, with resolved at work."""
    resolved(bare, f"DNS={UPSTREAM}")
    return bare


def test_its_own_servers_are_asked(deb: Path, bare: Container) -> None:
    for stub in ("127.0.0.53", "127.0.0.54"):
        assert answers(bare, stub), "before the package is there"
    install(bare, deb)
    assert bare.path("/etc/embargo/embargo.toml").read_text() == SHIPPED
    assert asked(bare) == {UPSTREAM}
    assert answers(bare)
    assert blocks(bare)
    for stub in ("127.0.0.53", "127.0.0.54"):
        assert answers(bare, stub), "it works as before"
    assert bare.run("embargo", "check").stdout == "no problems\n"


def test_the_gateways_own_programs_may_ask_us_through_it(deb: Path, bare: Container) -> None:
    """It asks us first; its other server is the one that we ask."""
    resolved(bare, f"DNS=127.0.0.1 {UPSTREAM}", "Domains=~.")
    install(bare, deb)
    assert asked(bare) == {UPSTREAM}
    bare.run("systemctl", "restart", "systemd-resolved")
    assert blocks(bare, "127.0.0.53")
    assert answers(bare, "127.0.0.53")
    bare.run("systemctl", "stop", "embargo")
    until(lambda: answers(bare, "127.0.0.53"), "it turns to the other one")
    bare.run("systemctl", "start", "embargo")
    assert blocks(bare)
    assert not blocks(bare, "127.0.0.53"), "and stays with it, as the page says"
    bare.run("systemctl", "restart", "systemd-resolved")
    assert blocks(bare, "127.0.0.53")


def test_what_it_is_told_later_is_followed(deb: Path, bare: Container) -> None:
    install(bare, deb)
    resolved(bare, "DNS=198.51.100.77")
    until(lambda: asked(bare) == {"198.51.100.77"}, "the new one is asked")
    assert not answers(bare)
    resolved(bare, f"DNS={UPSTREAM}")
    until(lambda: asked(bare) == {UPSTREAM}, "the old one is asked again")
    until(lambda: answers(bare), "it answers")


def test_after_a_boot_its_servers_are_asked(site: Site) -> None:
    first = site.boot(config=SHIPPED)
    try:
        resolved(first, f"DNS={UPSTREAM}")
        first.poweroff()
    finally:
        first.kill()
    layer = site.lab.keep("gateway")
    second = site.lab.boot("gateway", layers=[layer, site.installed])
    try:
        assert second.run("systemctl", "is-system-running").stdout == "running\n"
        until(lambda: answers(second), "what is allowed is answered")
        assert asked(second) == {UPSTREAM}
        assert blocks(second)
    finally:
        second.kill()


HELD = (
    "remove 127.0.0.1 from DNSStubListenerExtra= in /etc/systemd/resolved.conf or resolved.conf.d and restart systemd-resolved"
)


def test_a_first_start_while_it_has_our_port_says_so_and_goes_on_when_that_is_mended(deb: Path, bare: Container) -> None:
    resolved(bare, f"DNS={UPSTREAM}", "DNSStubListenerExtra=127.0.0.1")
    install(bare, deb)
    assert bare.run("systemctl", "is-active", "embargo", check=False).stdout != "active\n"
    wanted = f"dns.listen: 127.0.0.1:53 (UDP) is in use by a process of systemd-resolve; {HELD}, or listen on another address"
    until(lambda: any(wanted in text for text in bare.messages("embargo")), "the journal names it")
    done = bare.run("embargo", "check", check=False)
    assert done.returncode == 1
    assert "127.0.0.1:53 (UDP) is in use by systemd-resolve (pid " in done.stdout, "outside of the unit, root sees the process"
    assert f"); {HELD}" in done.stdout
    resolved(bare, f"DNS={UPSTREAM}")  # as it says
    until(lambda: blocks(bare), "the agent is started again by itself")
    bare.run("systemctl", "start", "embargo")  # returns when it is ready
    assert answers(bare)


def test_its_stub_in_the_way_of_the_wildcard_is_named_too(site: Site) -> None:
    gateway = site.boot(config=f'[dns]\nlisten = ["0.0.0.0:53"]\nupstream = ["{UPSTREAM}"]\n')
    try:
        gateway.run("systemctl", "stop", "embargo")
        resolved(gateway, f"DNS={UPSTREAM}")
        assert gateway.run("systemctl", "start", "embargo", check=False).returncode != 0
        done = gateway.run("embargo", "check", check=False)
        assert "0.0.0.0:53 (UDP) is in use by systemd-resolve (pid " in done.stdout
        assert "; set DNSStubListener=no in /etc/systemd/resolved.conf or resolved.conf.d and restart" in done.stdout
        resolved(gateway, f"DNS={UPSTREAM}", "DNSStubListener=no")
        until(lambda: blocks(gateway), "the agent is started again by itself")
    finally:
        gateway.kill()
