"""Validating resolvers that ask the agent: Unbound and BIND, with the signed zones of a real server behind it."""

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.agent import free_port, running
from tools.rig import until

pytestmark = pytest.mark.all

HEAD = "$TTL 60\n@ SOA ns.example. host.example. 1 3600 600 86400 60\n@ NS ns.example.\n"
ZONES = {
    "sealed.example": "@ A 192.0.2.10\nmail A 192.0.2.11\n",  # signed, with a DS record in `example`
    "plain.example": "@ A 192.0.2.10\nmail A 192.0.2.11\na.b A 192.0.2.12\n",  # not signed
    "exact.example": "@ A 192.0.2.10\nmail A 192.0.2.11\n",
    "example": "ns A 127.0.0.1\nplain NS ns\nexact NS ns\nsealed NS ns\nfine A 192.0.2.9\n",
}
SIGNED = ("sealed.example", "example")
BLOCK = ["sealed.example", "plain.example", "=exact.example"]
ALLOW = ["mail.sealed.example", "mail.plain.example", "a.b.plain.example"]


def sign(directory: Path, zone: str) -> None:
    for flags in ((), ("-f", "KSK")):
        command = ["dnssec-keygen", "-q", "-a", "ECDSAP256SHA256", *flags, zone]
        subprocess.run(command, cwd=directory, check=True, capture_output=True)
    subprocess.run(["dnssec-signzone", "-q", "-S", "-g", "-o", zone, zone], cwd=directory, check=True, capture_output=True)


def authority(directory: Path) -> tuple[list[str], int]:
    """The command of a server of all zones, and its port."""
    port = free_port()
    for zone, records in ZONES.items():
        (directory / zone).write_text(HEAD + records)
    for zone in SIGNED:
        sign(directory, zone)
    files = {zone: f"{zone}.signed" if zone in SIGNED else zone for zone in ZONES}
    (directory / "named.conf").write_text(
        f'options {{ directory "{directory}"; listen-on port {port} {{ 127.0.0.1; }}; listen-on-v6 {{ none; }}; recursion no;'
        " pid-file none; session-keyfile none; };\ncontrols {};\n"
        + "".join(f'zone "{zone}" {{ type primary; file "{file}"; }};\n' for zone, file in files.items())
    )
    return ["named", "-g", "-c", str(directory / "named.conf")], port


def unbound(directory: Path, upstream: int) -> tuple[list[str], int]:
    port = free_port()
    anchor = " ".join((directory / "dsset-example.").read_text().splitlines()[0].split())
    (directory / "unbound.conf").write_text(
        f'server:\n interface: 127.0.0.1\n port: {port}\n do-daemonize: no\n username: ""\n chroot: ""\n pidfile: ""\n'
        f' directory: "{directory}"\n use-syslog: no\n do-not-query-localhost: no\n module-config: "validator iterator"\n'
        f' trust-anchor: "{anchor}"\nremote-control:\n control-enable: no\n'
        f'forward-zone:\n name: "."\n forward-addr: 127.0.0.1@{upstream}\n'
    )
    return ["unbound", "-d", "-c", str(directory / "unbound.conf")], port


def bind(directory: Path, upstream: int) -> tuple[list[str], int]:
    port = free_port()
    words = (directory / "dsset-example.").read_text().splitlines()[0].split()
    anchor = f'example. static-ds {" ".join(words[3:6])} "{"".join(words[6:])}"'
    (directory / "bind").mkdir()
    (directory / "bind.conf").write_text(
        f'options {{ directory "{directory}/bind"; listen-on port {port} {{ 127.0.0.1; }}; listen-on-v6 {{ none; }};'
        f" forward only; forwarders port {upstream} {{ 127.0.0.1; }}; dnssec-validation yes; empty-zones-enable no;"
        f" pid-file none; session-keyfile none; }};\ncontrols {{}};\ntrust-anchors {{ {anchor}; }};\n"
    )
    return ["named", "-g", "-c", str(directory / "bind.conf")], port


def dig(port: int, name: str, qtype: str = "A") -> str:
    """The rcode, with AD behind it where the resolver has validated the answer."""
    command = ["dig", "@127.0.0.1", "-p", str(port), "+dnssec", "+tries=1", "+time=10", name, qtype]
    text = subprocess.run(command, capture_output=True, text=True, check=False).stdout
    flags = text.partition(" flags: ")[2].partition(";")[0].split()
    return text.partition("status: ")[2].partition(",")[0] + (" AD" if "ad" in flags else "")


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("validating")
    made.chmod(0o755)
    return made


@pytest.fixture(scope="module")
def validators(directory: Path) -> Iterator[dict[str, int]]:
    """Ports of the resolvers, which ask the agent."""
    (directory / "block.list").write_text("\n".join(BLOCK) + "\n")
    (directory / "allow.list").write_text("\n".join(ALLOW) + "\n")
    command, port = authority(directory)
    with running(directory, dns={"upstream": [f"127.0.0.1:{port}"]}) as agent, (directory / "log").open("wb") as log:
        commands = {"authority": command}
        ports = {"agent": agent.port}
        for make in (unbound, bind):
            commands[make.__name__], ports[make.__name__] = make(directory, agent.port)
        servers = [subprocess.Popen(each, stdout=log, stderr=log, stdin=subprocess.DEVNULL) for each in commands.values()]
        try:
            until(lambda: all(dig(each, "fine.example").startswith("NOERROR") for each in ports.values()), "all answer")
            yield ports
        finally:
            for server in servers:
                server.kill()
                server.wait()


@pytest.mark.parametrize("validator", ["unbound", "bind"])
@pytest.mark.parametrize(
    ("name", "result"),
    [
        ("fine.example", "NOERROR AD"), ("mail.sealed.example", "NOERROR AD"), ("mail.plain.example", "NOERROR"),
        ("a.b.plain.example", "NOERROR"), ("mail.exact.example", "NOERROR"),
    ],
)  # fmt: skip
def test_a_name_that_passes_below_a_blocked_one_validates(
    validators: dict[str, int], validator: str, name: str, result: str
) -> None:
    assert dig(validators[validator], name) == result


@pytest.mark.parametrize("name", ["sealed.example", "plain.example", "x.plain.example", "exact.example"])
def test_the_blocked_name_stays_blocked(validators: dict[str, int], name: str) -> None:
    """A validating resolver finds no proof for NXDOMAIN in a signed zone, so there the answer is SERVFAIL."""
    assert dig(validators["agent"], name) == "NXDOMAIN"
    for validator in ("unbound", "bind"):
        assert dig(validators[validator], name) in ("NXDOMAIN", "SERVFAIL")


@pytest.mark.parametrize(
    ("name", "verdict"),
    [
        ("fine.example", "; fully validated"), ("mail.sealed.example", "; fully validated"),
        ("mail.plain.example", "; unsigned answer"), ("absent.example", "; negative response, fully validated"),
    ],
)  # fmt: skip
def test_delv_validates_what_passes(validators: dict[str, int], directory: Path, name: str, verdict: str) -> None:
    """delv asks for every DNSKEY and DS record itself, with the agent as its only server."""
    words = (directory / "dsset-example.").read_text().splitlines()[0].split()
    path = directory / "anchors"
    path.write_text(f'trust-anchors {{ example. static-ds {" ".join(words[3:6])} "{"".join(words[6:])}"; }};\n')
    command = ["delv", "@127.0.0.1", "-p", str(validators["agent"]), "-a", str(path), "+root=example", name]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30)
    assert verdict in (done.stdout + done.stderr).splitlines()
