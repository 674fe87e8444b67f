"""Probes as packets: sent in the client's namespace, and looked for in the sink's.

A probe has passed if the sink receives it: the sink captures everything on its interface. A probe was rejected if the client's
kernel reports an error for its socket.
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

from embargo.verify.sandbox import CLIENT_MAC, GATEWAY_MAC, Sandbox

BATCH = 256  # probes at once, each with a socket of its own
REJECTION = 1.0  # seconds for a TCP connection to be rejected, which takes a tenth of a millisecond
PAUSE = 0.1  # seconds after the last packet for anything else to arrive or be rejected
CONTROL = 3  # tries of a control: without it probes prove nothing, so a lost packet must not fail it

_SO_RCVBUFFORCE = 33
_ETH_P_ALL, _OUTGOING = 3, 4
_TCP, _UDP, _ICMP, _ICMPV6 = 6, 17, 1, 58
_FRAGMENT = 44
_EXTENSIONS = {0, 43, _FRAGMENT, 60}  # hop-by-hop options, routing header, fragment, destination options (RFC 8200)
_NUMBERS = {(4, "tcp"): _TCP, (6, "tcp"): _TCP, (4, "udp"): _UDP, (6, "udp"): _UDP, (4, "icmp"): _ICMP, (6, "icmp"): _ICMPV6}
_REJECTIONS = {errno.ECONNREFUSED, errno.ECONNRESET, errno.EHOSTUNREACH, errno.ENETUNREACH, errno.EACCES, errno.EPERM}


class Probe(NamedTuple):
    """One packet. `form`: how it is crafted by hand, else empty."""

    proto: str  # tcp | udp | icmp
    address: str
    port: int = 0
    form: str = ""

    def __str__(self) -> str:
        place = f"[{self.address}]" if ":" in self.address else self.address
        return " ".join(filter(None, (self.proto, self.form, f"{place}:{self.port}" if self.port else self.address)))


@dataclass(slots=True)
class ProbeResult:
    """What became of a probe. `reaction` of the client's kernel: open, rejected, silent or unsendable."""

    probe: Probe
    reaction: str = "silent"
    arrived: bool = False  # at the sink

    @property
    def passed(self) -> bool:
        """Whether the packet reached the sink, or its connection was accepted."""
        return self.arrived or self.reaction == "open"


class _Arrival(NamedTuple):
    """What identifies a packet at the sink."""

    address: bytes
    proto: int
    port: int


class Prober:
    """Sends probes in the client's namespace and looks for them in the sink's."""

    def __init__(self, sandbox: Sandbox) -> None:
        self._sandbox = sandbox
        self._capture = sandbox.inside("sink", _capture)
        self._sent: defaultdict[_Arrival, list[ProbeResult]] = defaultdict(list)
        self._frames = sandbox.inside("client", lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW))
        self._frames.bind(("eth0", 0))
        self._number = random.randrange(1 << 16)  # identifier of echo requests: each is a flow of its own

    def close(self) -> None:
        """Close the sockets in both namespaces."""
        self._capture.close()
        self._frames.close()

    # ── probes ───────────────────────────────────────────────────────────────────────────────────────────────────────

    def send(self, probes: Sequence[Probe]) -> list[ProbeResult]:
        """Send each probe and wait for its result. `arrived` may still become true at a later `look`."""
        results = [ProbeResult(probe) for probe in probes]
        for at in range(0, len(results), BATCH):
            self._batch(results[at : at + BATCH])
        return results

    def _batch(self, results: Sequence[ProbeResult]) -> None:
        waiting: dict[int, tuple[socket.socket, ProbeResult]] = {}
        poll = select.poll()
        try:
            for result, sock in zip(results, self._sandbox.inside("client", lambda: _sockets(results)), strict=True):
                waiting[sock.fileno()] = sock, result
                self.expect(result)
                self._number += 1
                if _start(sock, result, self._number):
                    poll.register(sock, select.POLLOUT if result.probe.proto == "tcp" else select.POLLIN)
            self._wait(poll, waiting)
        finally:
            for sock, _ in waiting.values():
                sock.close()
        self.look()

    def _wait(self, poll: "select.poll", waiting: dict[int, tuple[socket.socket, ProbeResult]]) -> None:
        """Wait until every TCP probe is decided, and PAUSE for the others."""
        began = time.monotonic()
        undecided = {fd for fd, (_, result) in waiting.items() if result.reaction == "silent"}
        while undecided:
            tcp = any(waiting[fd][1].probe.proto == "tcp" for fd in undecided)
            left = began + (REJECTION if tcp else PAUSE) - time.monotonic()
            if left <= 0:
                return
            for fd, _ in poll.poll(1000 * left):
                sock, result = waiting[fd]
                result.reaction = _reaction(sock, result.probe)
                if result.reaction != "silent":
                    poll.unregister(fd)
                    undecided.discard(fd)

    def expect(self, result: ProbeResult) -> None:
        """Look for this probe at the sink from now on."""
        self._sent[_key(result.probe)].append(result)

    def look(self) -> None:
        """Record what has arrived at the sink since the last look."""
        while True:
            try:
                packet, (_, _, kind, *_) = self._capture.recvfrom(2048)
            except BlockingIOError:
                return
            except OSError:  # the receive buffer overflowed; what was received counts
                continue
            arrival = None if kind == _OUTGOING else _arrival(packet)
            for result in self._sent.get(arrival, ()) if arrival is not None else ():
                result.arrived = True

    # ── packets made by hand ─────────────────────────────────────────────────────────────────────────────────────────

    def send_crafted(self, crafted: Sequence[tuple[Probe, Sequence[bytes]]]) -> list[ProbeResult]:
        """Send whole IP packets, one or more per probe, as a program with raw sockets does."""
        results = []
        for probe, packets in crafted:
            result = ProbeResult(probe)
            self.expect(result)
            results.append(result)
            kind = b"\x86\xdd" if ":" in probe.address else b"\x08\x00"
            for packet in packets:
                self._frames.send(_mac(GATEWAY_MAC) + _mac(CLIENT_MAC) + kind + packet)
        time.sleep(PAUSE)
        self.look()
        for result in results:  # the next form has the same key
            self._sent.pop(_key(result.probe), None)
        return results

    # ── the control ──────────────────────────────────────────────────────────────────────────────────────────────────

    def control(self, proto: str, address: str, port: int) -> bool:
        """Whether an allowed packet reaches the sink, and the answer reaches the client."""
        if proto == "icmp":
            return self._again(lambda: self.send([Probe("icmp", address)])[0], lambda result: result.reaction == "open")
        work = self._control_tcp if proto == "tcp" else self._control_udp
        return self._again(lambda: work(address, port), bool)

    @staticmethod
    def _again(work: Callable[[], Any], good: Callable[[Any], bool]) -> bool:
        return any(good(work()) for _ in range(CONTROL))

    def _control_tcp(self, address: str, port: int) -> bool:
        with self._server(socket.SOCK_STREAM, address, port) as server:
            server.listen(16)  # the kernel completes the handshake without an accept
            return self.send([Probe("tcp", address, port)])[0].reaction == "open"

    def _control_udp(self, address: str, port: int) -> bool:
        family = _family(address)
        with (
            self._server(socket.SOCK_DGRAM, address, port) as server,
            self._sandbox.inside("client", lambda: socket.socket(family, socket.SOCK_DGRAM)) as client,
        ):
            try:
                client.connect((address, port))
                client.send(b"embargo verify")
                client.settimeout(REJECTION / 2)
                server.settimeout(REJECTION / 2)
                data, peer = server.recvfrom(64)
                server.sendto(data, peer)
                return client.recv(64) == data
            except OSError:
                return False

    def _server(self, kind: socket.SocketKind, address: str, port: int) -> socket.socket:
        def make() -> socket.socket:
            sock = socket.socket(_family(address), kind)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            # all addresses are local in the sink, but on no interface: IP_FREEBIND, IPV6_FREEBIND
            level, option = (socket.IPPROTO_IPV6, 78) if ":" in address else (socket.IPPROTO_IP, 15)
            sock.setsockopt(level, option, 1)
            sock.bind((address, port))
            return sock

        return self._sandbox.inside("sink", make)


def _family(address: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in address else socket.AF_INET


def _mac(text: str) -> bytes:
    return bytes.fromhex(text.replace(":", ""))


def _key(probe: Probe) -> _Arrival:
    number = _NUMBERS[6 if ":" in probe.address else 4, probe.proto]
    return _Arrival(socket.inet_pton(_family(probe.address), probe.address), number, probe.port)


def _sockets(results: Iterable[ProbeResult]) -> list[socket.socket]:
    """One socket per probe, in the namespace of the calling thread."""
    made = []
    for result in results:
        version = 6 if ":" in result.probe.address else 4
        kind, number = {
            "tcp": (socket.SOCK_STREAM, 0), "udp": (socket.SOCK_DGRAM, 0),
            "icmp": (socket.SOCK_RAW, _NUMBERS[version, "icmp"]),
        }[result.probe.proto]  # fmt: skip
        sock = socket.socket(_family(result.probe.address), kind, number)
        sock.setblocking(False)
        made.append(sock)
    return made


def _start(sock: socket.socket, result: ProbeResult, number: int) -> bool:
    """Send the probe. False if there is nothing to wait for."""
    probe = result.probe
    try:
        code = sock.connect_ex((probe.address, probe.port))
        if probe.proto == "tcp":
            if code == errno.EINPROGRESS:
                return True
            result.reaction = "rejected" if code in _REJECTIONS else "open" if code == 0 else "unsendable"
            return False
        if code:
            raise OSError(code, "connect")
        sock.send(b"embargo verify" if probe.proto == "udp" else _echo(":" in probe.address, number))
    except OSError as error:
        result.reaction = "rejected" if error.errno in (errno.ECONNREFUSED, errno.EHOSTUNREACH, errno.EACCES) else "unsendable"
        return False
    return True


def _reaction(sock: socket.socket, probe: Probe) -> str:
    if number := sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
        return "rejected" if number in _REJECTIONS else "unsendable"
    if probe.proto != "icmp":
        return "open"
    data = sock.recv(2048)  # before it was connected, the socket received packets for others
    reply = data[:1] == b"\x81" if ":" in probe.address else data[4 * (data[0] & 15) :][:1] == b"\0"
    return "open" if reply else "silent"


def _echo(v6: bool, number: int) -> bytes:
    """An echo request (RFC 792, RFC 4443). The kernel computes the checksum of ICMPv6 only."""
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
    """The identity of a packet. None for later fragments, which are useless without the first."""
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
