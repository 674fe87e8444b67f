"""What the table does with packets, in the kernel: rulesets laid down directly, no agent. Real connections on a gateway."""

import dataclasses
import ipaddress
import itertools
import socket
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from embargo.daemon.guard.nflog import NfLog, Record
from embargo.daemon.host.nftables import Nftables
from embargo.firewall import nft, ruleset, spans
from embargo.firewall.ruleset import Spec
from embargo.firewall.table import TABLE
from embargo.lists.policy import Action, Class
from golden import rulesets
from support.firewall import Firewall, Packet
from tools.rig import LAN4, LAN6, OTHER4, OTHER6, WAN4, WEB4, Rig, until

pytestmark = pytest.mark.root

PAY, LOGS, DOT, DOQ = Class("alipay", "payment"), Class("qq", "telemetry"), Class("bypass", "dot"), Class("bypass", "doq")
CLIENTS = {4: f"{LAN4}.10", 6: f"{LAN6}:10"}
SPARED = {4: f"{LAN4}.11", 6: f"{LAN6}:11"}
NETWORKS = ("203.0.113.64/26", "2001:db8:a::/64")
SINGLE = ("203.0.113.7", "2001:db8:b::7")
FREE = ("203.0.113.8", "2001:db8:b::8")
RATELESS = ("net.ipv4.icmp_ratelimit=0", "net.ipv6.icmp.ratelimit=0")  # each reject is told, not one a second

GROUP = 8310

Lay = Callable[..., None]
_generations = itertools.count(1)


@pytest.fixture(scope="module")
def rig() -> Iterator[Rig]:
    with Rig() as built:
        built.own("2001:db8:9::/48", "2001:db8:a::/48", "2001:db8:b::/48", "2001:db8:d::/48", "2001:db8:ff::/48")
        built.own("2001:db8:100::/48", f"{WAN4}.7/32", f"{WAN4}.99/32")
        for address in (f"{SPARED[6]}/64", f"{LAN4}.7/24", "2001:db8:1::9/64"):
            built.run("client", "ip", "address", "add", address, "dev", "eth0")
        built.run("gateway", "sysctl", "-qw", *RATELESS)
        built.serve_web()
        built.serve_dns(role="gateway", port=5353, default=["192.0.2.1"])
        built.serve_dns(role="client", default=["192.0.2.99"])
        built.serve_dns()
        yield built


@pytest.fixture(scope="module")
def kernel(rig: Rig) -> Iterator[Nftables]:
    made = rig.within("gateway", Nftables)
    yield made
    made.close()


@pytest.fixture
def lay(kernel: Nftables) -> Iterator[Lay]:
    """Lay down these networks and addresses for one class each, and take the table away again."""

    def lay_down(*listed: tuple[str, Class], actions: dict[Class, Action] | None = None, **members: Any) -> None:
        ranges = []
        for text, class_ in listed:
            network = ipaddress.ip_network(text)
            ranges.append((network.version, int(network[0]), int(network[-1]), class_))
        classes = dict.fromkeys((class_ for _, class_ in listed), Action.BLOCK) | (actions or {})
        spec = Spec(next(_generations), tuple(classes.items()), spans.gather(sorted(ranges)), log_group=GROUP)
        kernel.replace(ruleset.build(dataclasses.replace(spec, **members)))

    yield lay_down
    kernel.remove(TABLE)


def packets(kernel: Nftables, name: str) -> int:
    return kernel.counters(TABLE)[name][0]


def connect(rig: Rig, role: str, source: str, address: str, port: int = 443) -> str:
    """A connection from one of several addresses."""
    with rig.socket(role, socket.SOCK_STREAM, address) as sock:
        sock.settimeout(3)
        sock.bind((source, 0))
        try:
            sock.connect((address, port))
            sock.sendall(b"hello")
            fate = "open" if sock.recv(64) == b"hello" else "silent"
            sock.shutdown(socket.SHUT_WR)
            sock.recv(64)  # the end of the other side: nothing of this flow is under way any more
            return fate
        except (ConnectionRefusedError, ConnectionResetError):
            return "refused"


# ── addresses and networks ───────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("role", ["client", "gateway"])
@pytest.mark.parametrize("lan", [(), ("lan0",)])
def test_a_network_is_unreachable_from_its_first_to_its_last_address_and_its_neighbours_work(
    rig: Rig, lay: Lay, network: str, role: str, lan: tuple[str, ...]
) -> None:
    parsed = ipaddress.ip_network(network)
    inside = (parsed[0], parsed[1], parsed[-1])
    beside = (parsed[0] - 1, parsed[-1] + 1)
    for address in (*inside, *beside):
        assert rig.reach(role, str(address)) == "open"
    lay((network, PAY), lan=lan)
    for address in inside:
        assert rig.reach(role, str(address)) == "refused", "a reset"
        assert rig.reach(role, str(address), udp=True) == (
            "unreachable" if (role, parsed.version) == ("client", 4) else "refused"
        )
    for address in beside:
        assert rig.reach(role, str(address)) == "open"
        assert rig.reach(role, str(address), udp=True) == "open"


@pytest.mark.parametrize(("single", "free"), list(zip(SINGLE, FREE, strict=True)))
def test_a_single_address_is_unreachable_and_the_next_one_works(rig: Rig, lay: Lay, single: str, free: str) -> None:
    lay((single, PAY))
    for role in ("client", "gateway"):
        assert rig.reach(role, single) == "refused"
        assert rig.reach(role, free) == "open"


@pytest.mark.parametrize("network", ["0.0.0.0/0", "::/0"])
def test_the_whole_address_space_of_one_family(rig: Rig, lay: Lay, network: str) -> None:
    """The guards of the lists refuse it; if it ever gets here it must mean what it says, and leave the other family."""
    mine, other = (FREE[0], FREE[1]) if "." in network else (FREE[1], FREE[0])
    lay((network, PAY), lan=("lan0",))
    assert rig.reach("client", mine) != "open"
    assert rig.reach("client", other) == "open"


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("lan", [(), ("lan0",)])
def test_who_comes_from_a_listed_address_is_refused_too(rig: Rig, lay: Lay, family: int, lan: tuple[str, ...]) -> None:
    """An open flow looks like this to us when the server speaks first."""
    listed, free = SINGLE[family == 6], FREE[family == 6]
    listener = rig.socket("client", socket.SOCK_STREAM, CLIENTS[family])
    listener.bind((CLIENTS[family], 0))
    listener.listen()

    def arrives(source: str) -> bool:
        with sender(rig, socket.SOCK_STREAM, source) as sock:
            try:
                sock.connect(listener.getsockname()[:2])
            except ConnectionRefusedError:
                return False
            listener.accept()[0].close()
            return True

    with listener:
        assert arrives(listed)
        lay((listed, PAY), lan=lan)
        assert not arrives(listed)
        assert arrives(free)


def test_a_packet_from_a_listed_address_is_counted_and_logged_once(rig: Rig, kernel: Nftables, lay: Lay) -> None:
    """What we refuse it with goes to a listed address: that is no attempt of the client's, nor of ours."""
    log = rig.within("gateway", lambda: NfLog(GROUP))
    lay((SINGLE[0], PAY), (SINGLE[1], PAY))
    found: list[Record] = []
    for kind, listed in itertools.product((socket.SOCK_STREAM, socket.SOCK_DGRAM), SINGLE):
        with sender(rig, kind, listed) as sock, pytest.raises(OSError, match=r"refused|No route|denied"):
            greet(sock, CLIENTS[6 if ":" in listed else 4])

    def more() -> int:
        found.extend(log.read())
        return len(found) >= 4

    until(more, "the records come")
    log.close()
    assert packets(kernel, "alipay_payment") == 4
    assert sorted((record.proto, record.family) for record in found) == [(6, 4), (6, 6), (17, 4), (17, 6)]


def sender(rig: Rig, kind: int, source: str) -> socket.socket:
    """A socket of the internet's, bound to one of its many addresses."""
    sock = rig.socket("internet", kind, source)
    sock.settimeout(3)
    if ":" in source:
        sock.setsockopt(socket.IPPROTO_IPV6, 78, 1)  # IPV6_FREEBIND: it stands on no interface
    sock.bind((source, 0))
    return sock


def greet(sock: socket.socket, address: str) -> None:
    sock.connect((address, 4321))
    sock.send(b"x")
    sock.recv(1)


# ── which clients ────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("lan", [(), ("lan0",)])
def test_excepted_clients_are_not_filtered(rig: Rig, lay: Lay, lan: tuple[str, ...]) -> None:
    excepted = (f"{SPARED[4]}/32", f"{SPARED[6]}/128")
    lay(*((text, PAY) for text in (*SINGLE, *NETWORKS)), lan=lan, except_=excepted, actions={DOT: Action.BLOCK})
    for address in (*SINGLE, "203.0.113.70", "2001:db8:a::5"):
        family = 6 if ":" in address else 4
        assert connect(rig, "client", SPARED[family], address) == "open"
        assert connect(rig, "client", CLIENTS[family], address) == "refused"
    for address in FREE:
        family = 6 if ":" in address else 4
        assert connect(rig, "client", SPARED[family], address, 853) == "open"
        assert connect(rig, "client", CLIENTS[family], address, 853) == ("refused" if lan else "open")


def test_only_the_named_interfaces_are_filtered(rig: Rig, lay: Lay) -> None:
    lay(*((text, PAY) for text in SINGLE), lan=("lan1", "guest0"))
    for address in SINGLE:
        assert rig.reach("client", address) == "open", "it comes in on lan0"
        assert rig.reach("gateway", address) == "refused", "what the gateway itself sends is filtered always"
    lay(*((text, PAY) for text in SINGLE), lan=("lan1", "lan0"))
    for address in SINGLE:
        assert rig.reach("client", address) == "refused"


@pytest.mark.parametrize(("address", "name", "key"), [(SINGLE[0], "allow4", 4), (SINGLE[1], "allow6", 6)])
def test_addresses_behind_allowed_names_go_first_for_their_time(
    rig: Rig, kernel: Nftables, lay: Lay, address: str, name: str, key: int
) -> None:
    lay((f"{address}/{32 if key == 4 else 128}", PAY))
    packed = socket.inet_pton(socket.AF_INET if key == 4 else socket.AF_INET6, address)
    kernel.transact(nft.timed_elements(TABLE, name, [(packed, 1)]))
    assert rig.reach("client", address) == "open"
    until(lambda: rig.reach("client", address) == "refused", "its time is over")


# ── what is told ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_every_packet_is_counted_for_its_class_in_packets_and_octets(rig: Rig, kernel: Nftables, lay: Lay) -> None:
    lay((SINGLE[0], PAY), (SINGLE[1], PAY), (NETWORKS[0], LOGS), (NETWORKS[1], LOGS))

    def send(address: str, count: int) -> None:
        with rig.socket("client", socket.SOCK_DGRAM, address) as sock:
            for _ in range(count):
                sock.sendto(bytes(100), (address, 9))

    send(SINGLE[0], 3)
    send(SINGLE[1], 5)
    send("203.0.113.70", 7)
    send("2001:db8:a::5", 11)
    send(FREE[0], 13)
    until(lambda: packets(kernel, "qq_telemetry") == 18, "all came through")
    counters = kernel.counters(TABLE)
    assert counters["alipay_payment"] == (8, 3 * 128 + 5 * 148)
    assert counters["qq_telemetry"] == (18, 7 * 128 + 11 * 148)


def test_counters_go_on_over_a_replacement(rig: Rig, kernel: Nftables, lay: Lay) -> None:
    lay((SINGLE[0], PAY))
    assert rig.reach("client", SINGLE[0]) == "refused"
    before = packets(kernel, "alipay_payment")
    assert before > 0
    lay((SINGLE[0], PAY), (SINGLE[1], PAY))
    assert packets(kernel, "alipay_payment") == before
    assert rig.reach("client", SINGLE[1]) == "refused"
    assert packets(kernel, "alipay_payment") > before


def test_audit_counts_and_lets_pass(rig: Rig, kernel: Nftables, lay: Lay) -> None:
    lay(*((text, PAY) for text in SINGLE), actions={PAY: Action.AUDIT})
    for address in SINGLE:
        before = packets(kernel, "alipay_payment")
        assert rig.reach("client", address) == "open"
        assert packets(kernel, "alipay_payment") > before


def test_the_table_reads_well(rig: Rig, lay: Lay) -> None:
    """As `nft list table inet embargo` shows it: names, interfaces, addresses and words, no bare numbers."""
    lay((NETWORKS[0], PAY), (SINGLE[1], LOGS), lan=("lan0", "wlan-guest"), except_=("192.0.2.11/32",), intercept_port=5353)
    text = rig.run("gateway", "nft", "list", "table", "inet", TABLE).stdout
    for line in (
        'elements = { "lan0",', '"wlan-guest",', '"embargo-verify" }', "elements = { 203.0.113.64/26 : jump alipay_payment }",
        "elements = { 2001:db8:b::7 : jump qq_telemetry }", "elements = { 192.0.2.11 }",
        'counter name "alipay_payment" comment "app alipay, function payment"',
        'log prefix "embargo alipay/payment" group 8310', "meta l4proto tcp reject with tcp reset",
        "type filter hook forward priority filter - 5; policy accept;",
        "type nat hook prerouting priority dstnat - 10; policy accept;",
        'udp dport 53 redirect to :5353 comment "answered here"',
    ):  # fmt: skip
        assert line in text, line


# ── port 53 and encrypted DNS ────────────────────────────────────────────────────────────────────────────────────────────

OURS = ("A 192.0.2.1",)


@pytest.mark.parametrize("server", [OTHER4, OTHER6])
@pytest.mark.parametrize("transport", ["+notcp", "+tcp"])
def test_port_53_of_lan_clients_comes_to_us_and_nobody_elses(rig: Rig, lay: Lay, server: str, transport: str) -> None:
    behind = CLIENTS[6 if ":" in server else 4]
    theirs = rig.dig("client", f"@{server}", transport, "www.example").answers
    assert theirs == (f"A {WEB4}",)
    lay(lan=("lan0",), intercept_port=5353)
    assert rig.dig("client", f"@{server}", transport, "www.example").answers == OURS
    assert rig.dig("gateway", f"@{server}", transport, "www.example").answers == theirs, "our own questions go out"
    outside = rig.dig("internet", f"@{behind}", transport, "www.example").answers
    assert outside == ("A 192.0.2.99",), "a server behind the gateway is asked from outside as before"


def test_port_53_is_redirected_for_as_long_as_somebody_answers(rig: Rig, kernel: Nftables, lay: Lay) -> None:
    """fail = "open": the guardian says so again and again, and the kernel keeps the time."""

    def answers() -> tuple[str, ...]:
        return rig.dig("client", f"@{OTHER4}", "www.example").answers

    lay(lan=("lan0",), intercept_port=5353, fail="open")
    assert answers() == (f"A {WEB4}",)
    kernel.transact(nft.alive(TABLE, ["lan0"], 1))
    assert answers() == OURS
    until(lambda: answers() == (f"A {WEB4}",), "the second is over")


@pytest.mark.parametrize("server", [OTHER4, OTHER6])
def test_what_slips_past_the_interception_is_refused_and_counted(rig: Rig, kernel: Nftables, lay: Lay, server: str) -> None:
    """A flow that was open before the interception: NAT sees only the first packet of each."""
    with rig.socket("client", socket.SOCK_STREAM, server) as flow:
        flow.settimeout(3)
        rig.run("gateway", "nft", "table inet other { chain f { type filter hook forward priority 0; ct state new accept; }; }")
        flow.connect((server, 53))
        lay(lan=("lan0",), intercept_port=5353)
        flow.sendall(b"\0\1x")
        with pytest.raises(ConnectionResetError):
            flow.recv(64)
    assert packets(kernel, "intercept_leak") > 0
    rig.run("gateway", "nft", "delete table inet other")


@pytest.mark.parametrize("address", FREE)
def test_encrypted_dns_is_refused_by_port(rig: Rig, kernel: Nftables, lay: Lay, address: str) -> None:
    lay(actions={DOT: Action.BLOCK, DOQ: Action.BLOCK}, lan=("lan0",))
    assert rig.reach("client", address, 853) == "refused"
    assert packets(kernel, "bypass_dot") > 0
    assert packets(kernel, "bypass_doq") == 0
    assert rig.reach("client", address, 853, udp=True) == ("unreachable" if "." in address else "refused")
    assert packets(kernel, "bypass_doq") > 0
    assert rig.reach("gateway", address, 853) == "open", "the gateway's own resolver may use it"
    assert rig.reach("client", address, 443) == "open"


# ── as the values say ────────────────────────────────────────────────────────────────────────────────────────────────────

_ADDRESSES = (
    "203.0.113.0", "203.0.113.7", "203.0.113.8", "203.0.113.15", "203.0.113.16", "203.0.113.64", "203.0.113.65",
    "203.0.113.79", "203.0.113.80", "203.0.113.96", "203.0.113.127", "203.0.113.128", "203.0.113.129", "203.0.113.200",
    f"{WAN4}.7", f"{WAN4}.99", "2001:db8:9::7", "2001:db8:a::7", "2001:db8:a:0:ffff::1", "2001:db8:a:1::1",
    "2001:db8:d::1", "2001:db8:ff:1::1", "2001:db8:100::1",
)  # fmt: skip
_SOURCES = {4: (f"{LAN4}.10", f"{LAN4}.7"), 6: (f"{LAN6}:10", "2001:db8:1::9")}


@pytest.mark.parametrize("case", rulesets.CASES)
def test_the_kernel_decides_as_a_naive_reading_of_the_values_does(rig: Rig, kernel: Nftables, case: str) -> None:
    """Every golden ruleset, packet by packet, and the counters that move."""
    kernel.remove(TABLE)
    table = rulesets.CASES[case]()
    kernel.replace(table)
    try:
        naive = Firewall(table, alive=False)
        for address, port in itertools.product(_ADDRESSES, (443, 853)):
            for source in _SOURCES[ipaddress.ip_address(address).version]:
                fate = naive.pass_through("forward", Packet(source, address, "tcp", port, "lan0", "wan0"))
                before = kernel.counters(TABLE)
                assert connect(rig, "client", source, address, port) == ("open" if fate.verdict == "accept" else "refused")
                moved = {name for name, count in kernel.counters(TABLE).items() if count != before[name]}
                assert moved == set(fate.counted), (source, address, port)
    finally:
        kernel.remove(TABLE)


def test_the_addresses_above_meet_listed_and_free_ones() -> None:
    """The comparison would be worth little if all of them fared alike."""
    naive = Firewall(rulesets.CASES["lan_fail_closed"]())
    fates = [naive.pass_through("forward", Packet(_SOURCES[4][0], a, iif="lan0")) for a in _ADDRESSES if ":" not in a]
    assert {fate.verdict for fate in fates} == {"accept", "reject reset"}
