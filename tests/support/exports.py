"""Exports read back: by the words of each format's documentation, and by the real resolvers on loopback."""

import os
import random
import re
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import dns.flags
import dns.message
import dns.name
import dns.query
import dns.rdatatype

from embargo import names
from embargo.lists import lists
from embargo.lists.lists import Guard
from embargo.lists.policy import Level, List, Source
from embargo.names import Name
from support import catalogue
from support.agent import free_port
from tools.rig import until

Blocks = Callable[[Name], bool]

# ── by the words ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def hosts(text: str) -> Blocks:
    """hosts(5): an address and names a line."""
    found = {names.from_text(name) for line in text.splitlines() for name in line.partition("#")[0].split()[1:]}
    return found.__contains__


def domains(text: str) -> Blocks:
    """A list of ours."""
    return covered(parsed(text.splitlines()))


def parsed(lines: Iterable[str]) -> List:
    source = Source("domains", Level.BLOCK, "local", "block", False)
    found = lists.parse("\n".join(lines).encode(), file="domains", source=source, guard=Guard())
    assert not found.problems
    return found


def covered(list_: List) -> Blocks:
    suffixes = {entry.name for entry in list_.entries if not entry.text.startswith("=")}
    exact = {entry.name for entry in list_.entries if entry.text.startswith("=")}
    return lambda name: name in exact or any(each in suffixes for each in names.suffixes(name))


def excepted(text: str) -> Blocks:
    """What a list of domains asks to be put on an allow list: the names behind its comments."""
    body = text.partition("\n#\n")[2]  # behind the header
    return covered(parsed(found[1] for found in re.finditer(r"^# ([^ /]+)$", body, re.MULTILINE) if found[1] != "exceptions"))


def adblock(text: str) -> Blocks:
    """AdGuard's syntax of host rules: the highest kind of rule that matches decides."""
    rules = []
    for line in text.splitlines():
        if line.startswith("!"):
            continue
        found = re.fullmatch(r"(@@)?(\|\|?)([a-z0-9_.-]+)\^(\$important)?", line)
        assert found, line
        weight = 2 * bool(found[4]) + bool(found[1])
        rules.append((weight, not found[1], found[2] == "||", names.from_text(found[3])))

    def blocks(name: Name) -> bool:
        above = set(names.suffixes(name))
        matching = [rule for rule in rules if (rule[3] in above if rule[2] else rule[3] == name)]
        return max(matching)[1] if matching else False

    return blocks


# ── the real ones ────────────────────────────────────────────────────────────────────────────────────────────────────────

_DNSMASQ = (
    "--no-daemon", "--no-resolv", "--no-hosts", "--user=root", "--pid-file=", "--cache-size=0", "--bind-interfaces",
    "--listen-address=127.0.0.1",
)  # fmt: skip

_UNBOUND = """\
server:
 interface: 127.0.0.1
 port: {port}
 do-daemonize: no
 chroot: ""
 username: ""
 directory: "{directory}"
 pidfile: ""
 use-syslog: no
 do-not-query-localhost: no
 do-ip6: no
 local-zone: "test." nodefault
 module-config: "{modules}"
remote-control:
 control-enable: no
forward-zone:
 name: "."
 forward-addr: 127.0.0.1@{upstream}
{policy}
"""

_BIND = """\
options {{
 directory "{directory}";
 listen-on port {port} {{ 127.0.0.1; }};
 listen-on-v6 {{ none; }};
 pid-file none;
 session-keyfile none;
 managed-keys-directory "{directory}";
 recursion yes;
 forward only;
 forwarders {{ 127.0.0.1 port {upstream}; }};
 dnssec-validation no;
 notify no;
 empty-zones-enable no;
 response-policy {{ zone "rpz.embargo"; }} qname-wait-recurse no;
}};
controls {{ }};
zone "rpz.embargo" {{ type primary; file "{directory}/policy"; allow-query {{ 127.0.0.0/8; }}; }};
"""


def _copy(program: str, directory: Path) -> str:
    """The program by another path: AppArmor knows Debian's by theirs, and lets them read their own directories alone."""
    found = shutil.which(program, path=f"{os.environ['PATH']}:/usr/sbin")
    assert found, f"{program} is not installed: see Makefile"
    return str(shutil.copy(found, directory / program))


def dnsmasq(directory: Path, port: int, upstream: int) -> list[str]:
    return ["dnsmasq", *_DNSMASQ, f"--port={port}", f"--server=127.0.0.1#{upstream}", f"--conf-file={directory}/policy"]


def unbound(directory: Path, port: int, upstream: int) -> list[str]:
    values = {"directory": directory, "port": port, "upstream": upstream, "modules": "iterator"}
    (directory / "unbound.conf").write_text(_UNBOUND.format(**values, policy=f'include: "{directory}/policy"'))
    return [_copy("unbound", directory), "-d", "-c", f"{directory}/unbound.conf"]


def unbound_rpz(directory: Path, port: int, upstream: int) -> list[str]:
    values = {"directory": directory, "port": port, "upstream": upstream, "modules": "respip iterator"}
    zone = f'rpz:\n name: "rpz.embargo."\n zonefile: "{directory}/policy"\n'
    (directory / "unbound.conf").write_text(_UNBOUND.format(**values, policy=zone))
    return [_copy("unbound", directory), "-d", "-c", f"{directory}/unbound.conf"]


def bind(directory: Path, port: int, upstream: int) -> list[str]:
    (directory / "named.conf").write_text(_BIND.format(directory=directory, port=port, upstream=upstream))
    return [_copy("named", directory), "-g", "-n", "1", "-c", f"{directory}/named.conf"]


class Resolver:
    """A resolver on loopback, asked over UDP."""

    def __init__(self, port: int, errors: Path) -> None:
        self.port = port
        self.errors = errors

    def ask(self, name: Name | str, qtype: str = "A") -> dns.message.Message:
        asked = dns.name.from_wire(name, 0)[0] if isinstance(name, bytes) else dns.name.from_text(name)
        query = dns.message.make_query(asked, qtype, flags=dns.flags.RD)
        return dns.query.udp(query, "127.0.0.1", port=self.port, timeout=20)

    def answers(self) -> bool:
        try:
            query = dns.message.make_query("ready.invalid", "SOA")
            dns.query.udp(query, "127.0.0.1", port=self.port, timeout=1)
        except (OSError, dns.exception.DNSException):
            return False
        return True


@contextmanager
def serving(
    command: Callable[[Path, int, int], list[str]], directory: Path, text: str, upstream: int, ready: str = ""
) -> Iterator[Resolver]:
    """One of the above with this export, until it is gone. `ready`: what it writes when the policy is in force."""
    (directory / "policy").write_text(text)
    port, log = free_port(), directory / "log"
    with open(log, "wb") as opened:
        process = subprocess.Popen(command(directory, port, upstream), stdin=subprocess.DEVNULL, stdout=opened, stderr=opened)
    try:
        resolver = Resolver(port, log)
        until(
            lambda: process.poll() is not None or (ready in log.read_text(errors="replace") and resolver.answers()),
            "the resolver answers", 60,
        )  # fmt: skip
        assert process.poll() is None, log.read_text(errors="replace")[-2000:]
        yield resolver
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


# ── policies in which everything overlaps ────────────────────────────────────────────────────────────────────────────────

_LISTS = (
    "alipay/payment.list", "alipay/core.list", "alipay/telemetry.shared.list", "bypass/canary.list", "qq/payment.list",
    "qq/telemetry.list",
)  # fmt: skip
_LABELS = ("a", "b")


def tangled(seed: int, count: int) -> tuple[Mapping[str, Sequence[str]], tuple[List, ...]]:
    """Catalogue and local lists: so many small policies, each below a name of its own, in one."""
    chance = random.Random(seed)
    files: dict[str, list[str]] = {path: [] for path in (*_LISTS, "allow.list", "block.list")}
    for number in range(count):
        for _ in range(chance.randint(1, 7)):
            path = chance.choice((*_LISTS, "alipay/payment.list", "qq/payment.list", "block.list", "allow.list"))
            labels = [chance.choice(_LABELS) for _ in range(chance.randint(0, 4))]
            files[path].append(chance.choice(("", "", "=", "!")) + ".".join((*labels, f"p{number}.example")))
    local = tuple(catalogue.local(level, *files.pop(f"{level.name.lower()}.list")) for level in (Level.ALLOW, Level.BLOCK))
    return files, local


def around(listed: Iterable[Name]) -> list[Name]:
    """The listed names, those above them, and names below and beside, in a fixed order."""
    found: dict[Name, None] = {}
    for name in listed:
        above = list(names.suffixes(name))[:-1]
        found |= dict.fromkeys(above)
        for each in above:
            for label in (*_LABELS, "x", "x.y"):
                found[Name(names.from_text(label)[:-1] + each)] = None
        found[Name(b"\1z" + name[1 + name[0] :])] = None
    return list(found)
