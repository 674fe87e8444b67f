"""A client, a gateway and an "internet" as network namespaces, with real servers in them. For the demonstration and tests.

    client ── lan ── gateway ── wan ── internet

The internet owns whole networks (`own`): a server on a wildcard socket answers for every address in them. It has no way out,
so no packet leaves the machine. Everything is removed at the end, and so is what a killed run left behind.
"""

import contextlib
import ctypes
import itertools
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self, TypeVar

from embargo.daemon.host import namespaces

PREFIX = "embargo"
ROLES = ("client", "gateway", "internet")
LAN4, LAN6 = "192.0.2", "2001:db8:1:"
WAN4, WAN6 = "198.51.100", "2001:db8:2:"
UPSTREAM4, UPSTREAM6 = f"{WAN4}.2", f"{WAN6}:2"
OTHER4, OTHER6 = "203.0.113.53", "2001:db8:3::53"  # somebody else's resolver
WEB4, WEB6 = "203.0.113.80", "2001:db8:3::80"  # what every name leads to that the upstream was not told of
PORTS = (80, 443, 784, 853, 8853, 8080)  # TCP and UDP, where the internet answers whoever connects

_PR_SET_PDEATHSIG = 1
_numbers = itertools.count(1)
_libc = ctypes.CDLL(None, use_errno=True)

T = TypeVar("T")


def within(namespace: str, work: Callable[[], T]) -> T:
    """Call something in a thread that lives in the network namespace of this file."""
    with open(namespace) as opened:
        return namespaces.within(opened.fileno(), work)


class Answer(NamedTuple):
    """What dig said."""

    rcode: str  # empty: nothing came
    flags: frozenset[str]
    answers: tuple[str, ...]  # the last columns of the answer section
    authority: tuple[str, ...]
    ede: str
    text: str


class Rig:
    def __init__(self) -> None:
        number = next(_numbers)
        self._names = {role: f"{PREFIX}-{os.getpid()}-{number}-{role}" for role in ROLES}
        self._processes: list[subprocess.Popen[bytes]] = []
        self._files = tempfile.TemporaryDirectory(prefix=f"{PREFIX}-{os.getpid()}-{number}-rig-")

    def __enter__(self) -> Self:
        _sweep()
        try:
            self._build()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _build(self) -> None:
        client, gateway, internet = (self._names[role] for role in ROLES)
        for name in self._names.values():
            _ip(f"netns add {name}")
            _ip(f"-n {name} link set lo up")
        for role in ROLES:  # without it an IPv6 address, also a link-local one, is not usable for a second
            self.run(role, "sysctl", "-qw", "net.ipv6.conf.default.accept_dad=0", "net.ipv6.conf.all.accept_dad=0")
        commands = [
            f"link add lan0 netns {gateway} type veth peer name eth0 netns {client}",
            f"link add wan0 netns {gateway} type veth peer name eth0 netns {internet}",
            f"-n {gateway} address add {LAN4}.1/24 dev lan0",
            f"-n {gateway} address add {LAN6}:1/64 dev lan0",
            f"-n {gateway} address add {WAN4}.1/24 dev wan0",
            f"-n {gateway} address add {WAN6}:1/64 dev wan0",
            f"-n {client} address add {LAN4}.10/24 dev eth0",
            f"-n {client} address add {LAN6}:10/64 dev eth0",
            f"-n {client} address add {LAN4}.11/24 dev eth0",
            f"-n {internet} address add {UPSTREAM4}/24 dev eth0",
            f"-n {internet} address add {UPSTREAM6}/64 dev eth0",
        ]
        commands += [f"-n {gateway} link set {name} up" for name in ("lan0", "wan0")]
        commands += [f"-n {name} link set eth0 up" for name in (client, internet)]
        commands += [
            f"-n {client} route add default via {LAN4}.1", f"-n {client} -6 route add default via {LAN6}:1",
            f"-n {gateway} route add default via {UPSTREAM4}", f"-n {gateway} -6 route add default via {UPSTREAM6}",
            f"-n {internet} route add {LAN4}.0/24 via {WAN4}.1", f"-n {internet} -6 route add {LAN6}:/64 via {WAN6}:1",
        ]  # fmt: skip
        for command in commands:
            _ip(command)
        sysctl = "net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1"
        self.run("gateway", "sysctl", "-qw", *sysctl.split())
        self.own("203.0.113.0/24", "2001:db8:3::/48")
        for address in (f"{OTHER4}/32", f"{OTHER6}/128"):  # dnsmasq answers on TCP and IPv6 for addresses of interfaces only
            _ip(f"-n {internet} address add {address} dev lo")

    def own(self, *networks: str) -> None:
        """Let the internet have these networks too: every address in them is its own."""
        for family in ("-4", "-6"):
            mine = [network for network in networks if (":" in network) == (family == "-6")]
            subprocess.run(
                ["ip", "-n", self._names["internet"], family, "-batch", "-"], check=True, capture_output=True, text=True,
                input="".join(f"route replace local {network} dev lo\n" for network in mine),
            )  # fmt: skip

    def close(self) -> None:
        for process in reversed(self._processes):
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            process.wait()
        self._processes.clear()
        for name in self._names.values():
            subprocess.run(["ip", "netns", "delete", name], capture_output=True, check=False)
        self._files.cleanup()

    # ── running things ───────────────────────────────────────────────────────────────────────────────────────────────

    @property
    def directory(self) -> Path:
        return Path(self._files.name)

    def prefix(self, role: str) -> list[str]:
        return ["ip", "netns", "exec", self._names[role]]

    def run(self, role: str, *command: str, check: bool = True, seconds: float = 30) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [*self.prefix(role), *command], check=False, capture_output=True, text=True, timeout=seconds,
            stdin=subprocess.DEVNULL,
        )  # fmt: skip
        if check and done.returncode:
            raise RuntimeError(f"{' '.join(command)}: status {done.returncode}: {done.stderr.strip()}")
        return done

    def start(self, role: str, *command: str) -> subprocess.Popen[bytes]:
        """A process that dies with this one, and is killed at the end."""
        log = open(self.directory / f"{len(self._processes)}.log", "wb")  # noqa: SIM115 # the process has it
        with log:
            process = subprocess.Popen(
                [*self.prefix(role), *command], stdin=subprocess.DEVNULL, stdout=log, stderr=log, preexec_fn=_die_with_parent
            )
        self._processes.append(process)
        return process

    def within(self, role: str, work: Callable[[], T]) -> T:
        """Call something in a thread that lives in a namespace: sockets it makes belong there wherever they are used."""
        return within(f"/run/netns/{self._names[role]}", work)

    def socket(self, role: str, kind: int, address: str) -> socket.socket:
        """A socket in a namespace, of the family of `address`."""
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        return self.within(role, lambda: socket.socket(family, kind))

    # ── servers ──────────────────────────────────────────────────────────────────────────────────────────────────────

    def serve_dns(self, *records: str, role: str = "internet", port: int = 53, default: Sequence[str] = (WEB4, WEB6)) -> None:
        """Debian's dnsmasq on every address. `records` are its options; every other name leads to `default`."""
        options = [
            "--no-daemon", "--conf-file=/dev/null", "--no-resolv", "--no-hosts", "--user=root", "--pid-file=", "--cache-size=0",
            f"--port={port}", *(f"--address=/#/{address}" for address in default), *(f"--{record}" for record in records),
        ]  # fmt: skip
        self.start(role, "dnsmasq", *options)
        until(lambda: self.dig(role, "@127.0.0.1", "-p", str(port), "ready.example").rcode, "the upstream answers")

    def serve_web(self) -> None:
        """Somebody who answers on PORTS of every address of the internet."""
        self.start("internet", sys.executable, "-c", _WEB, *map(str, PORTS))
        until(lambda: self.reach("internet", "127.0.0.1", PORTS[-1]) == "open", "the servers answer")

    # ── asking ───────────────────────────────────────────────────────────────────────────────────────────────────────

    def dig(self, role: str, *words: str) -> Answer:
        """Real dig, one try."""
        return parse(self.run(role, "dig", "+tries=1", "+time=3", *words, check=False).stdout)

    def reach(self, role: str, address: str, port: int = 443, *, udp: bool = False, seconds: float = 2.0) -> str:
        """Connect, and hear an answer: open, refused, unreachable, or silent."""
        with self.socket(role, socket.SOCK_DGRAM if udp else socket.SOCK_STREAM, address) as sock:
            sock.settimeout(seconds)
            try:
                sock.connect((address, port))
                sock.send(b"hello\n")
                return "open" if sock.recv(64) else "silent"
            except (ConnectionRefusedError, ConnectionResetError, PermissionError):
                return "refused"
            except TimeoutError:
                return "silent"
            except OSError:
                return "unreachable"


_WEB = """
import selectors, socket, sys
waiting = selectors.DefaultSelector()
for port in map(int, sys.argv[1:]):
    for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
        sock = socket.socket(socket.AF_INET6, kind)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if kind == socket.SOCK_DGRAM:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO, 1)
            sock.setsockopt(socket.IPPROTO_IPV6, 78, 1)  # IPV6_FREEBIND
        sock.bind(("::", port))
        if kind == socket.SOCK_STREAM:
            sock.listen(128)
        waiting.register(sock, selectors.EVENT_READ, kind)
while True:
    for key, _ in waiting.select():
        sock = key.fileobj
        try:
            if key.data == socket.SOCK_DGRAM:  # from the address that was asked
                data, ancillary, _, peer = sock.recvmsg(2048, 64)
                sock.sendmsg([data], ancillary, 0, peer)
            elif key.data == socket.SOCK_STREAM:
                waiting.register(sock.accept()[0], selectors.EVENT_READ, None)
            elif data := sock.recv(2048):
                sock.sendall(data)
            else:
                raise OSError
        except OSError:
            if key.data is None:
                waiting.unregister(sock)
                sock.close()
"""


def parse(text: str) -> Answer:
    """dig's output."""
    rcode = re.search(r"status: (\w+)", text)
    flags = re.search(r";; flags: ([a-z ]*);", text)
    ede = re.search(r"; EDE: (.*)", text)
    return Answer(
        rcode[1] if rcode else "", frozenset(flags[1].split() if flags else ()), _section(text, "ANSWER"),
        _section(text, "AUTHORITY"), ede[1] if ede else "", text,
    )  # fmt: skip


def _section(text: str, name: str) -> tuple[str, ...]:
    body = text.partition(f";; {name} SECTION:\n")[2].partition("\n\n")[0]
    return tuple(line.split(None, 3)[3].replace("\t", " ") for line in body.splitlines() if line.strip())


def until(condition: Callable[[], T], what: str, seconds: float = 20.0) -> T:
    """Wait for something to become true, and give it back."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if found := condition():
            return found
        time.sleep(0.02)
    raise TimeoutError(f"not within {seconds:.0f} s: {what}")


def _ip(command: str) -> None:
    subprocess.run(["ip", *command.split()], check=True, capture_output=True, text=True)


def _die_with_parent() -> None:
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def _sweep() -> None:
    """Remove the namespaces and directories of runs that were killed."""
    for name in _leftovers(os.listdir("/run/netns") if os.path.isdir("/run/netns") else ()):
        subprocess.run(["ip", "netns", "delete", name], capture_output=True, check=False)
    for name in _leftovers(os.listdir(tempfile.gettempdir())):
        shutil.rmtree(Path(tempfile.gettempdir(), name), ignore_errors=True)


def _leftovers(names: Sequence[str]) -> Iterator[str]:
    for name in names:
        found = re.fullmatch(rf"{PREFIX}-(\d+)-\d+-(?:{'|'.join(ROLES)}|rig-\w+)", name)
        if found and not os.path.exists(f"/proc/{found[1]}"):
            yield name
