"""A gateway between a client and an upstream, each a container of Debian 12 and of Debian 13; the gateway has our package."""

import json
import subprocess
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from support import lab as lab_
from support.lab import Container, Done, Lab
from tools.rig import until

LAN, WAN = "192.0.2", "198.51.100"
GATEWAY, UPSTREAM = f"{LAN}.1", f"{WAN}.2"
WEB = "203.0.113.80"  # where every name leads to, but for `ALONE`
LISTED = "43.227.188.1"  # blocklists/alipay/payment.list has its network
CONFIG = f"""\
[dns]
listen = ["127.0.0.1:53", "[::1]:53", "lan0"]
upstream = ["{UPSTREAM}"]

[firewall]
lan = ["lan0"]
"""


@dataclass
class Site:
    """What a test has at hand; `gateway` is there when the fixture of this name is asked for."""

    lab: Lab
    client: Container
    upstream: Container
    installed: Path
    deb: Path

    def boot(self, *, installed: bool = True, config: str = CONFIG, files: dict[str, str] | None = None) -> Container:
        """A gateway, with our package installed and started, or bare; without the rules of the one before."""
        self.lab.shell("ip netns exec gateway nft flush ruleset")
        files = (files or {}) | ({"/etc/embargo/embargo.toml": config} if installed else {})
        return self.lab.boot("gateway", layers=[self.installed] if installed else [], files=files)

    def dig(self, name: str, *words: str, server: str = GATEWAY) -> str:
        """What dig says on the client."""
        return self.client.run("dig", f"@{server}", "+tries=1", "+time=3", name, *words, check=False).stdout

    def blocked(self, name: str) -> bool:
        out = self.dig(name)
        return "status: NXDOMAIN" in out and "EDE: 15 (Blocked)" in out

    def answered(self, name: str, server: str = GATEWAY) -> bool:
        return WEB in self.dig(name, "+short", server=server)

    def reaches(self, address: str) -> bool:
        """Does the client get a page from there?"""
        done = self.client.run("curl", "--silent", "--max-time", "5", f"http://{address}/", check=False)
        return "Directory listing" in done.stdout


def install(gateway: Container, deb: Path, *words: str) -> Done:
    """Our package, by dpkg; its dependencies are there."""
    target = gateway.path(f"/root/{deb.name}")
    target.write_bytes(deb.read_bytes())
    return gateway.run("env", "DEBIAN_FRONTEND=noninteractive", "dpkg", *words, "--install", f"/root/{deb.name}")


def status_of(gateway: Container) -> dict[str, Any]:
    """The output of `embargo status --json`."""
    answer: dict[str, Any] = json.loads(gateway.run("embargo", "status", "--json").stdout)
    return answer


@pytest.fixture(scope="session")
def deb() -> Path:
    return lab_.package()


def _repacked(deb: Path, directory: Path, *edits: tuple[str, str, str], without: Iterable[str] = ()) -> Path:
    """The package with some texts replaced, (path, old, new), and without some of its files."""
    subprocess.run(["dpkg-deb", "--raw-extract", deb, directory / "tree"], check=True)
    for pattern in without:
        for file in (directory / "tree").glob(pattern):
            file.unlink()
    for path, old, new in edits:
        text = (directory / "tree" / path).read_text()
        assert old in text
        (directory / "tree" / path).write_text(text.replace(old, new))
    made = directory / f"embargo-agent_{directory.name}.deb"
    subprocess.run(["dpkg-deb", "--build", "-Znone", directory / "tree", made], check=True, capture_output=True)
    return made


VERSION = "usr/lib/embargo/embargo/__init__.py"


@pytest.fixture(scope="session")
def older(deb: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The package as an earlier version would be: it ran as root, and all its processes in one unit."""
    unit = "usr/lib/systemd/system/embargo.service"
    capabilities = "CAP_NET_ADMIN CAP_NET_BIND_SERVICE"
    return _repacked(
        deb, tmp_path_factory.mktemp("older"),
        ("DEBIAN/control", "Version: ", "Version: 0.0.1~"),
        (VERSION, '__version__ = "', '__version__ = "0.0.1~'),
        (unit, "\nUser=embargo\n", "\n"),
        (unit, "\nRequires=embargo-resolver.socket embargo-compiler.socket\n", "\n"),
        (unit, " --units=/run/embargo-units\n", "\n"),
        (unit, f"={capabilities}\n", f"={capabilities} CAP_SETUID CAP_SETGID CAP_KILL\n"),
        (unit, "\nSystemCallFilter=~@resources @aio\n", "\n"),
        ("etc/embargo/embargo.toml", "# Embargo's configuration.", "# An older Embargo's configuration."),
        (unit, "\nAfter=embargo-resolver.socket embargo-compiler.socket\n", "\n"),
        (unit, "\nUpholds=embargo-resolver.socket embargo-compiler.socket\n", "\n"),
        without=("usr/lib/systemd/system/embargo-*", "usr/lib/tmpfiles.d/*", "DEBIAN/preinst"),
    )  # fmt: skip


@pytest.fixture(scope="session")
def newer(deb: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The package as the next version would be, with one name more in a list."""
    return _repacked(
        deb, tmp_path_factory.mktemp("newer"),
        ("DEBIAN/control", "Version: ", "Version: 99+"),
        (VERSION, '__version__ = "', '__version__ = "99+'),
        ("usr/share/embargo/blocklists/alipay/payment.list", "\nalipay.com ", "\nnewly-listed.example.net\nalipay.com "),
    )  # fmt: skip


@pytest.fixture(scope="session", params=["bookworm", pytest.param("trixie", marks=pytest.mark.all)])
def site(request: pytest.FixtureRequest, deb: Path) -> Iterator[Site]:
    with Lab(lab_.rootfs(request.param)) as lab:
        lab.link("gateway", "lan0", f"{GATEWAY}/24", "client", "eth0", f"{LAN}.2/24")
        lab.link("gateway", "wan0", f"{WAN}.1/24", "upstream", "eth0", f"{UPSTREAM}/24")
        lab.shell(f"""ip -n client route add default via {GATEWAY}
ip -n gateway route add default via {UPSTREAM}
ip -n upstream route add {LAN}.0/24 via {WAN}.1
for net in 203.0.113.0/24 {LISTED}/32; do ip -n upstream route add local $net dev lo; done""")
        upstream, client = lab.hold("upstream"), lab.hold("client")
        upstream.start("dnsmasq", "--keep-in-foreground", "--conf-file=/dev/null", "--no-resolv", "--no-hosts",
                       f"--address=/#/{WEB}")  # fmt: skip
        upstream.start("python3", "-m", "http.server", "80")
        gateway = lab.boot("gateway")
        install(gateway, deb)
        gateway.run("systemctl", "stop", "embargo")
        gateway.run("sh", "-c", "rm -r /var/lib/embargo /var/log/embargo /root/*.deb")
        gateway.poweroff()
        found = Site(lab, client, upstream, lab.keep("gateway"), deb)
        until(lambda: found.answered("www.example.net", UPSTREAM), "the upstream answers")
        until(lambda: found.reaches(WEB), "the web answers")
        yield found


@pytest.fixture
def gateway(site: Site) -> Iterator[Container]:
    """A gateway that has booted with the package and the configuration above."""
    machine = site.boot()
    yield machine
    machine.kill()


@pytest.fixture
def bare(site: Site) -> Iterator[Container]:
    """A gateway that has never seen the package."""
    machine = site.boot(installed=False)
    yield machine
    machine.kill()
