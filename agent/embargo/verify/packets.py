"""Probes as packets: sent by the client's kernel, and looked for where they would arrive.

What counts is what the sink sees: it listens to everything that its interface receives. A refusal is what the client's kernel
says of the socket.
"""

import errno
import random
import select
import socket
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from embargo.verify.network import CLIENT_MAC, GATEWAY_MAC, Addresses, Network

BATCH = 256  # probes at once, each with a socket of its own
PATIENCE = 1.0  # seconds for a TCP connection to be refused; it takes a tenth of a millisecond
PAUSE = 0.1  # seconds for anything else to arrive or be refused, after the last packet was sent
CONTROL = 3  # tries of a control: a lost packet must not turn a proof into a doubt

_SO_RCVBUFFORCE = 33
_ETH_P_ALL, _OUTGOING = 3, 4
_TCP, _UDP, _ICMP, _ICMPV6 = 6, 17, 1, 58
_FRAGMENT = 44
_EXTENSIONS = {0, 43, _FRAGMENT, 60}  # hop-by-hop options, routing header, fragment, destination options (RFC 8200)
_NUMBERS = {(4, "tcp"): _TCP, (6, "tcp"): _TCP, (4, "udp"): _UDP, (6, "udp"): _UDP, (4, "icmp"): _ICMP, (6, "icmp"): _ICMPV6}
_REFUSED = {errno.ECONNREFUSED, errno.ECONNRESET, errno.EHOSTUNREACH, errno.ENETUNREACH, errno.EACCES, errno.EPERM}


class Probe(NamedTuple):
    """One packet, or what is sent in its place by hand: then `form` says how."""

    proto: str  # tcp | udp | icmp
    address: str
    port: int = 0
    form: str = ""

    def __str__(self) -> str:
        place = f"[{self.address}]" if ":" in self.address else self.address
        return " ".join(filter(None, (self.proto, self.form, f"{place}:{self.port}" if self.port else self.address)))


@dataclass(slots=True)
class Outcome:
    """What became of a probe. `said`: open, refused, silent, or unsendable."""

    probe: Probe
    said: str = "silent"
    arrived: bool = False

    @property
    def passed(self) -> bool:
        return self.arrived or self.said == "open"


class _Arrival(NamedTuple):
    address: bytes
    proto: int
    port: int


class Range:
    """Where probes are sent from and looked for."""

    def __init__(self, network: Network) -> None:
        self._network = network
        self._capture = network.inside("sink", _capture)
        self._sent: defaultdict[_Arrival, list[Outcome]] = defaultdict(list)
        self._frames = network.inside("client", lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW))
        self._frames.bind(("eth0", 0))
        self._number = random.randrange(1 << 16)  # of echo requests: an identifier each is a flow each

    def close(self) -> None:
        self._capture.close()
        self._frames.close()

    # ── probes ───────────────────────────────────────────────────────────────────────────────────────────────────────

    def send(self, probes: Sequence[Probe]) -> list[Outcome]:
        """Each probe with its outcome. `arrived` may still turn true at a later look."""
        outcomes = [Outcome(probe) for probe in probes]
        for at in range(0, len(outcomes), BATCH):
            self._batch(outcomes[at : at + BATCH])
        return outcomes

    def _batch(self, outcomes: Sequence[Outcome]) -> None:
        waiting: dict[int, tuple[socket.socket, Outcome]] = {}
        poll = select.poll()
        try:
            for outcome, sock in zip(outcomes, self._network.inside("client", lambda: _sockets(outcomes)), strict=True):
                waiting[sock.fileno()] = sock, outcome
                self.expect(outcome)
                self._number += 1
                if _start(sock, outcome, self._number):
                    poll.register(sock, select.POLLOUT if outcome.probe.proto == "tcp" else select.POLLIN)
            self._wait(poll, waiting)
        finally:
            for sock, _ in waiting.values():
                sock.close()
        self.look()

    def _wait(self, poll: "select.poll", waiting: dict[int, tuple[socket.socket, Outcome]]) -> None:
        """Until every TCP probe is decided and the others had their pause."""
        began = time.monotonic()
        undecided = {fd for fd, (_, outcome) in waiting.items() if outcome.said == "silent"}
        while undecided:
            tcp = any(waiting[fd][1].probe.proto == "tcp" for fd in undecided)
            left = began + (PATIENCE if tcp else PAUSE) - time.monotonic()
            if left <= 0:
                return
            for fd, _ in poll.poll(1000 * left):
                sock, outcome = waiting[fd]
                outcome.said = _said(sock, outcome.probe)
                if outcome.said != "silent":
                    poll.unregister(fd)
                    undecided.discard(fd)

    def expect(self, outcome: Outcome) -> None:
        """Look for this probe at the sink from now on."""
        self._sent[_key(outcome.probe)].append(outcome)

    def look(self) -> None:
        """What has arrived since the last look."""
        while True:
            try:
                packet, (_, _, kind, *_) = self._capture.recvfrom(2048)
            except BlockingIOError:
                return
            except OSError:  # too many at once; those that were taken count
                continue
            arrival = None if kind == _OUTGOING else _arrival(packet)
            for outcome in self._sent.get(arrival, ()) if arrival is not None else ():
                outcome.arrived = True

    # ── packets made by hand ─────────────────────────────────────────────────────────────────────────────────────────

    def send_crafted(self, crafted: Sequence[tuple[Probe, Sequence[bytes]]]) -> list[Outcome]:
        """Whole IP packets, a few for each probe, as a program with raw sockets sends them."""
        outcomes = []
        for probe, packets in crafted:
            outcome = Outcome(probe)
            self.expect(outcome)
            outcomes.append(outcome)
            kind = b"\x86\xdd" if ":" in probe.address else b"\x08\x00"
            for packet in packets:
                self._frames.send(_mac(GATEWAY_MAC) + _mac(CLIENT_MAC) + kind + packet)
        time.sleep(PAUSE)
        self.look()
        for outcome in outcomes:  # the next form of the same packet is another matter
            self._sent.pop(_key(outcome.probe), None)
        return outcomes

    # ── the control ──────────────────────────────────────────────────────────────────────────────────────────────────

    def control(self, proto: str, address: str, port: int) -> bool:
        """Does an allowed packet reach the sink, and its answer the client?"""
        if proto == "icmp":
            return self._again(lambda: self.send([Probe("icmp", address)])[0], lambda outcome: outcome.said == "open")
        work = self._control_tcp if proto == "tcp" else self._control_udp
        return self._again(lambda: work(address, port), bool)

    @staticmethod
    def _again(work: Callable[[], Any], good: Callable[[Any], bool]) -> bool:
        return any(good(work()) for _ in range(CONTROL))

    def _control_tcp(self, address: str, port: int) -> bool:
        with self._server(socket.SOCK_STREAM, address, port) as server:
            server.listen(16)  # the kernel completes the handshake; nobody needs to accept
            return self.send([Probe("tcp", address, port)])[0].said == "open"

    def _control_udp(self, address: str, port: int) -> bool:
        family = _family(address)
        with (
            self._server(socket.SOCK_DGRAM, address, port) as server,
            self._network.inside("client", lambda: socket.socket(family, socket.SOCK_DGRAM)) as client,
        ):
            try:
                client.connect((address, port))
                client.send(b"embargo verify")
                client.settimeout(PATIENCE / 2)
                server.settimeout(PATIENCE / 2)
                data, peer = server.recvfrom(64)
                server.sendto(data, peer)
                return client.recv(64) == data
            except OSError:
                return False

    def _server(self, kind: socket.SocketKind, address: str, port: int) -> socket.socket:
        def make() -> socket.socket:
            sock = socket.socket(_family(address), kind)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            # every address is local in the sink, but IPv6 wants to hear that it need not stand on an interface
            level, option = (socket.IPPROTO_IPV6, 78) if ":" in address else (socket.IPPROTO_IP, 15)
            sock.setsockopt(level, option, 1)
            sock.bind((address, port))
            return sock

        return self._network.inside("sink", make)


def _family(address: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in address else socket.AF_INET


def _mac(text: str) -> bytes:
    return bytes.fromhex(text.replace(":", ""))


def _key(probe: Probe) -> _Arrival:
    number = _NUMBERS[6 if ":" in probe.address else 4, probe.proto]
    return _Arrival(socket.inet_pton(_family(probe.address), probe.address), number, probe.port)


def _sockets(outcomes: Iterable[Outcome]) -> list[socket.socket]:
    """One for each probe, made where the thread lives."""
    made = []
    for outcome in outcomes:
        version = 6 if ":" in outcome.probe.address else 4
        kind, number = {
            "tcp": (socket.SOCK_STREAM, 0), "udp": (socket.SOCK_DGRAM, 0),
            "icmp": (socket.SOCK_RAW, _NUMBERS[version, "icmp"]),
        }[outcome.probe.proto]  # fmt: skip
        sock = socket.socket(_family(outcome.probe.address), kind, number)
        sock.setblocking(False)
        made.append(sock)
    return made


def _start(sock: socket.socket, outcome: Outcome, number: int) -> bool:
    """Send the probe; False when there is nothing to wait for."""
    probe = outcome.probe
    try:
        result = sock.connect_ex((probe.address, probe.port))
        if probe.proto == "tcp":
            if result == errno.EINPROGRESS:
                return True
            outcome.said = "refused" if result in _REFUSED else "open" if result == 0 else "unsendable"
            return False
        if result:
            raise OSError(result, "connect")
        sock.send(b"embargo verify" if probe.proto == "udp" else _echo(":" in probe.address, number))
    except OSError as error:
        outcome.said = "refused" if error.errno in (errno.ECONNREFUSED, errno.EHOSTUNREACH, errno.EACCES) else "unsendable"
        return False
    return True


def _said(sock: socket.socket, probe: Probe) -> str:
    if number := sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
        return "refused" if number in _REFUSED else "unsendable"
    if probe.proto != "icmp":
        return "open"
    data = sock.recv(2048)  # before it was connected, the socket was given what came for others
    reply = data[:1] == b"\x81" if ":" in probe.address else data[4 * (data[0] & 15) :][:1] == b"\0"
    return "open" if reply else "silent"


def _echo(v6: bool, number: int) -> bytes:
    """An echo request (RFC 792, RFC 4443); the kernel fills in the checksum of ICMPv6."""
    body = number.to_bytes(4)[-2:] + b"\0\1" + b"embargo verify"
    if v6:
        return b"\x80\0\0\0" + body
    total = sum(int.from_bytes((b"\x08\0\0\0" + body)[i : i + 2]) for i in range(0, 4 + len(body), 2))
    while total > 0xFFFF:
        total = (total & 0xFFFF) + (total >> 16)
    return b"\x08\0" + (~total & 0xFFFF).to_bytes(2) + body


def _capture() -> socket.socket:
    sock = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(_ETH_P_ALL))
    sock.bind(("eth0", _ETH_P_ALL))
    sock.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, 16 << 20)
    sock.setblocking(False)
    return sock


def _arrival(packet: bytes) -> _Arrival | None:
    """What a packet is; None for a later fragment: without the first one it comes to nothing."""
    try:
        if packet[0] >> 4 == 4:
            head, proto, address = 4 * (packet[0] & 15), packet[9], packet[16:20]
            later = bool(int.from_bytes(packet[6:8]) & 0x1FFF)
        else:
            head, proto, address, later = 40, packet[6], packet[24:40], False
            while proto in _EXTENSIONS:  # each is at least eight octets long
                later = later or (proto == _FRAGMENT and int.from_bytes(packet[head + 2 : head + 4]) > 7)
                proto, head = packet[head], head + (8 if proto == _FRAGMENT else 8 * (packet[head + 1] + 1))
    except IndexError:
        return None
    return (
        None if later else _Arrival(address, proto, int.from_bytes(packet[head + 2 : head + 4]) if proto in (_TCP, _UDP) else 0)
    )


# ── fragments and extension headers ──────────────────────────────────────────────────────────────────────────────────────


def crafted(each: Addresses, target: str, port: int) -> dict[str, list[tuple[Probe, list[bytes]]]]:
    """What no well-behaved program sends, by kind. ImportError without scapy."""
    from scapy.layers import inet, inet6  # optional, and slow to load

    split: Any = inet.fragment
    split6: Any = inet6.fragment6
    udp = inet.UDP(sport=_fresh(), dport=port) / (b"embargo verify" * 40)
    syn = inet.TCP(sport=_fresh(), dport=port, flags="S")

    def made(proto: str, form: str, *made: Any) -> tuple[Probe, list[bytes]]:
        return Probe(proto, target, port, form), list(map(bytes, made))

    if each.version == 4:
        head = inet.IP(src=each.client, dst=target, id=_fresh())
        recorded = inet.IP(src=each.client, dst=target, options=[inet.IPOption_RR()])
        return {
            "fragments": [
                made("udp", "in fragments", *split(head / udp, fragsize=200)),
                made("tcp", "in fragments of 8 octets", *split(head / syn, fragsize=8)),
            ],
            "options": [made("tcp", "with a record-route option", recorded / syn), made("udp", "with options", recorded / udp)],
        }
    bare = inet6.IPv6(src=each.client, dst=target)
    hops, options = inet6.IPv6ExtHdrHopByHop(), inet6.IPv6ExtHdrDestOpt()
    return {
        "fragments": [
            made("udp", "in fragments", *split6(bare / inet6.IPv6ExtHdrFragment(id=_fresh()) / udp, 300)),
            made("tcp", "in an atomic fragment", bare / inet6.IPv6ExtHdrFragment(id=_fresh()) / syn),
        ],
        "extension headers": [
            made("tcp", "behind hop-by-hop options", bare / hops / syn),
            made("udp", "behind both kinds of options", bare / hops / options / udp),
        ],
        "destination options": [made("tcp", "behind destination options", bare / options / syn)],
    }


def _fresh() -> int:
    """A port or number that makes a packet a flow of its own: those of an earlier run may have been let through for good."""
    return random.randrange(0x4000, 0xF000)


def plain(each: Addresses, target: str, port: int) -> tuple[Probe, list[bytes]]:
    """A first packet of TCP, for an address that this kernel would not send to. ImportError without scapy."""
    from scapy.layers import inet, inet6

    packet = inet6.IPv6(src=each.client, dst=target) / inet.TCP(sport=_fresh(), dport=port, flags="S")
    return Probe("tcp", target, port, "by hand"), [bytes(packet)]
