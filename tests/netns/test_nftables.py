"""Our writer against the real kernel: content replaced under traffic, refusals, what survives."""

import dataclasses
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import pytest

from embargo.daemon.host.nftables import Nftables
from embargo.errors import FirewallError
from embargo.firewall import nft, ruleset, spans, wire
from embargo.firewall.nft import Message
from embargo.firewall.ruleset import Spec
from embargo.firewall.table import TABLE, Chain, Jump, Rule, Ruleset
from embargo.lists.policy import Action, Class
from support.stream import Stream, number
from tools.rig import LAN4, Rig, until

pytestmark = pytest.mark.root

PAY, LOGS = Class("alipay", "payment"), Class("alipay", "telemetry")
BLOCKED, ALLOWED = "203.0.113.5", "203.0.113.6"
BLOCKED6, ALLOWED6 = "2001:db8:3::5", "2001:db8:3::6"
NETWORK = {4: number("198.18.0.0"), 6: number("2001:db8:77::")}
OVERLAPPING = spans.gather([(4, 100, 200, PAY), (4, 150, 250, PAY)])


def spec(generation: int, *, single: bool = True, filler: int = 0, class_: Class = PAY) -> Spec:
    """BLOCKED and BLOCKED6 as single addresses, or each at the end of a range, and so many others of their kind."""
    ranges = []
    for family, text in ((4, BLOCKED), (6, BLOCKED6)):
        others = (NETWORK[family] + 16 * n for n in range(filler))
        ranges += [(family, first, first if single else first + 7, class_) for first in others]
        ranges.append((family, number(text) - (not single), number(text), class_))
    return Spec(generation, ((class_, Action.BLOCK),), spans.gather(sorted(ranges)), log_group=8300)


def made(generation: int, *, single: bool = True, filler: int = 0, class_: Class = PAY, **members: Any) -> Ruleset:
    return ruleset.build(dataclasses.replace(spec(generation, single=single, filler=filler, class_=class_), **members))


def sets_of(generation: int) -> set[str]:
    mine = ("address4", "network4", "learnt4", "address6", "network6", "learnt6", "to_embedded", "from_embedded")
    return {f"{name}_{generation}" for name in mine} | {"allow4", "allow6"}


@pytest.fixture
def rig() -> Iterator[Rig]:
    with Rig() as built:
        built.serve_web()
        yield built


@pytest.fixture
def kernel(rig: Rig) -> Iterator[Nftables]:
    socket_ = rig.within("gateway", Nftables)
    yield socket_
    socket_.close()


def listing(rig: Rig) -> str:
    """Everything but what counters say."""
    return rig.run("gateway", "nft", "-s", "list", "ruleset").stdout


# ── replacing ────────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("lan", [(), ("lan0",)], ids=["all", "lan"])
@pytest.mark.parametrize("single", [True, False], ids=["hash", "interval"])
def test_replacements_under_traffic_leak_and_lose_nothing(
    rig: Rig, kernel: Nftables, single: bool, lan: tuple[str, ...]
) -> None:
    """Two hundred in all four. Each has other elements, and every second one other classes: chains come and go."""

    def change(generation: int) -> None:
        port = 5353 if generation % 3 else 0  # interception, too, is switched on and off
        class_ = (PAY, LOGS)[generation % 2]
        filler = 400 + generation
        kernel.replace(made(generation, single=single, filler=filler, class_=class_, lan=lan, intercept_port=port))

    change(1)
    with Stream(rig, kernel, (BLOCKED, ALLOWED, BLOCKED6, ALLOWED6)) as stream:
        for generation in range(2, 52):
            change(generation)
    until(lambda: stream.came()[ALLOWED6] == stream.went()[ALLOWED6], "nothing is under way any more")
    came, went = stream.came(), stream.went()
    assert (went[BLOCKED], went[BLOCKED6]) == (0, 0)
    assert (went[ALLOWED], went[ALLOWED6]) == (came[ALLOWED], came[ALLOWED6])
    assert min(came.values()) > 1000
    counted = {name: packets for name, (packets, _) in kernel.counters(TABLE).items()}
    assert counted["alipay_payment"] + counted["alipay_telemetry"] == came[BLOCKED] + came[BLOCKED6], "through all of them"


def test_nothing_of_a_generation_is_left_when_the_next_is_in_force(rig: Rig, kernel: Nftables) -> None:
    kernel.replace(made(1, single=False, lan=("lan0",), except_=("192.0.2.77",), intercept_port=5353, fail="open"))
    kernel.replace(made(2, single=False, class_=LOGS))
    text = listing(rig)
    assert set(kernel.sets(TABLE)) == sets_of(2)
    assert "chain alipay_payment" not in text
    assert "prerouting" not in text
    assert "alipay_telemetry" in text


def test_timed_elements_survive_a_replacement_and_are_renewed(rig: Rig, kernel: Nftables) -> None:
    kernel.replace(made(1))
    key = socket.inet_aton(BLOCKED)
    kernel.transact(nft.timed_elements(TABLE, "allow4", [(key, 60)]))
    assert rig.reach("client", BLOCKED) == "open"
    kernel.replace(made(2, lan=("lan0",), fail="open"))
    kernel.transact(nft.alive(TABLE, ["lan0"], 60))
    kernel.replace(made(3, lan=("lan0",), fail="open"))
    assert kernel.keys(TABLE, "alive") == [b"lan0".ljust(16, b"\0")]
    assert rig.reach("client", BLOCKED) == "open"
    assert kernel.keys(TABLE, "allow4") == [key]
    kernel.transact([nft.flush_set(TABLE, "allow4")])
    assert rig.reach("client", BLOCKED) == "refused"


def remaining_ms(rig: Rig, name: str) -> int:
    text = rig.run("gateway", "nft", "list", "set", "inet", TABLE, name).stdout
    words = text.partition("expires ")[2].split()[0]
    units = {"h": 3_600_000, "m": 60_000, "s": 1000, "ms": 1}
    return sum(int(value) * units[unit] for value, unit in re.findall(r"(\d+)(ms|h|m|s)", words))


def test_a_timed_element_given_again_lasts_from_then_on(rig: Rig, kernel: Nftables) -> None:
    kernel.replace(made(1))
    element = nft.timed_elements(TABLE, "allow6", [(socket.inet_pton(socket.AF_INET6, BLOCKED6), 600)])
    kernel.transact(element)
    until(lambda: remaining_ms(rig, "allow6") < 599_900, "some of it is over")
    kernel.transact(element)
    assert remaining_ms(rig, "allow6") > 599_900


# ── refusals ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_refused_change_leaves_everything_as_it_was(rig: Rig, kernel: Nftables) -> None:
    kernel.replace(made(1, single=False))
    before = listing(rig)
    with pytest.raises(FirewallError, match=r"elements of network4_2: exists already, or overlaps"):
        kernel.replace(made(2, class_=LOGS, ranges=OVERLAPPING, lan=("lan0",), intercept_port=5353, fail="open"))
    assert listing(rig) == before, "no set, chain or counter more"
    kernel.replace(made(3, single=False))
    assert rig.reach("client", BLOCKED) == "refused"


def test_a_refused_switch_leaves_everything_as_it_was(rig: Rig, kernel: Nftables) -> None:
    """The last transaction fails: a rule leads to a chain that is not there."""
    kernel.replace(made(1))
    before = listing(rig)
    good = made(2, class_=LOGS)
    forward = next(chain for chain in good.chains if chain.name == "forward")
    bad = forward._replace(rules=(*forward.rules, Rule((Jump("nowhere"),))))
    chains = tuple(bad if chain is forward else chain for chain in good.chains)
    with pytest.raises(FirewallError, match=r"add rule forward: no such thing in the table"):
        kernel.replace(dataclasses.replace(good, chains=chains))
    assert listing(rig) == before
    kernel.replace(good)
    assert rig.reach("client", BLOCKED) == "refused"


class Refusing(Nftables):
    """Refuses one transaction, as a kernel that is out of memory does."""

    refused = -1
    transactions = 0

    def transact(self, messages: Sequence[Message]) -> None:
        self.transactions += 1
        if self.transactions == self.refused:
            raise FirewallError(messages[0].about, "out of memory")
        super().transact(messages)


def test_whichever_transaction_is_refused_the_old_rules_or_the_new_ones_hold(rig: Rig) -> None:
    kernel = rig.within("gateway", Refusing)
    kernel.replace(made(1, lan=("lan0",), intercept_port=5353))
    before = listing(rig)
    change = made(2, single=False, class_=LOGS)
    for refused in range(1, 20):
        kernel.transactions, kernel.refused = 0, refused
        try:
            kernel.replace(change)
        except FirewallError:
            assert listing(rig) == before
            assert rig.reach("client", BLOCKED) == "refused"
        else:
            break
    assert refused > 3, "those before the switch were refused, and the one that clears up after it"
    assert kernel.transactions == refused
    assert "redirect" not in listing(rig), "a hook that the new rules leave alone says nothing from the switch on"
    assert rig.reach("client", BLOCKED) == "refused"
    assert "address4_1" in kernel.sets(TABLE)
    kernel.replace(made(3))
    assert set(kernel.sets(TABLE)) == sets_of(3)
    kernel.close()


def test_keys_are_deleted_in_few_transactions_although_some_are_gone(rig: Rig) -> None:
    """A transaction fails when one of its elements is not there; thousands of transactions would hold the guardian up."""
    kernel = rig.within("gateway", Refusing)
    kernel.replace(made(1))
    keys = [number.to_bytes(4) for number in range(6000)]
    kernel.transact(nft.timed_elements(TABLE, "allow4", [(key, 60) for key in keys[:4000]]))
    kernel.transactions = 0
    kernel.drop_keys(TABLE, "allow4", keys[1000:])
    assert sorted(kernel.keys(TABLE, "allow4")) == keys[:1000]
    assert kernel.transactions == 2
    kernel.drop_keys(TABLE, "allow4", keys[4000:])
    kernel.drop_keys(TABLE, "allow4", [])
    assert kernel.transactions == 3
    kernel.refused = kernel.transactions + 2  # as if one had gone just now
    kernel.drop_keys(TABLE, "allow4", [*keys[:10], keys[5000]])
    assert len(kernel.keys(TABLE, "allow4")) == 990
    kernel.close()


def test_a_first_ruleset_that_is_refused_leaves_no_table(rig: Rig, kernel: Nftables) -> None:
    with pytest.raises(FirewallError, match="elements of network4_1"):
        kernel.replace(made(1, ranges=OVERLAPPING))
    assert listing(rig) == ""


def test_a_generation_that_is_in_force_is_not_written_over(rig: Rig, kernel: Nftables) -> None:
    kernel.replace(made(7))
    before = listing(rig)
    with pytest.raises(FirewallError, match="set address4_7 exists already"):
        kernel.replace(made(7))
    assert listing(rig) == before


def test_a_dry_run_leaves_nothing(rig: Rig, kernel: Nftables) -> None:
    kernel.replace(made(1))
    before = listing(rig)
    good = dataclasses.replace(made(1, single=False, filler=100, lan=("lan0",), intercept_port=5353), table="embargo_check")
    kernel.check(good)
    assert listing(rig) == before
    with pytest.raises(FirewallError, match="network4_1"):
        kernel.check(dataclasses.replace(made(1, ranges=OVERLAPPING), table="embargo_check"))
    assert listing(rig) == before


def test_without_cap_net_admin_it_says_what_is_needed() -> None:
    code = """if True:
        from embargo.daemon.host.nftables import Nftables
        from embargo.firewall import nft
        Nftables().transact([nft.new_table('x')])"""
    done = subprocess.run(
        ["setpriv", "--bounding-set=-net_admin", "--inh-caps=-net_admin", sys.executable, "-c", code],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert "FirewallError" in done.stderr
    assert "CAP_NET_ADMIN" in done.stderr


def test_a_table_that_another_process_owns_is_named_as_such(rig: Rig, kernel: Nftables) -> None:
    """Flag `owner` (linux/netfilter/nf_tables.h): nobody but the socket that made the table may change it."""
    other = rig.within("gateway", Nftables)
    name = TABLE.encode() + b"\0"
    payload = wire.attribute(1, name) + wire.u32(2, 2)
    other.transact([Message(0, 0x400, payload, "owned table")])
    with pytest.raises(FirewallError, match="add table inet embargo: another process owns the table"):
        kernel.replace(made(1))
    other.close()
    kernel.replace(made(1))


def test_a_flood_of_refusals_is_one_error_and_the_next_change_works(rig: Rig, kernel: Nftables) -> None:
    """More errors than the receive buffer holds: ENOBUFS, and what did arrive must not be taken for later answers."""
    kernel.replace(made(1))
    before = listing(rig)
    missing = [nft.delete_set(TABLE, f"missing{n}") for n in range(20_000)]
    with pytest.raises(FirewallError, match="delete set missing0: more errors than could be read"):
        kernel.transact(missing)
    assert listing(rig) == before
    kernel.replace(made(2))
    assert "address4_2" in kernel.sets(TABLE)


# ── reading ──────────────────────────────────────────────────────────────────────────────────────────────────────────────


_CHANGE = """
import time
from embargo.firewall import nft
from embargo.daemon.host.nftables import Nftables
from embargo.firewall.table import Chain
kernel = Nftables()
chains = [Chain(f"theirs{n}", ()) for n in range(100)]
kernel.transact([nft.new_table("other")])
end = time.monotonic() + 30
while time.monotonic() < end:
    kernel.transact([nft.new_chain("other", chain) for chain in chains])
    time.sleep(0.002)
    kernel.transact([nft.delete_chain("other", chain.name) for chain in chains])
    time.sleep(0.002)
"""


def test_lists_are_whole_although_others_change_the_ruleset_meanwhile(rig: Rig, kernel: Nftables) -> None:
    """Their table stands before ours: what the kernel lists is moved to and fro under its cursor."""
    rig.start("gateway", sys.executable, "-c", _CHANGE)
    until(lambda: kernel.has_table("other"), "the others are at it")
    ours = {f"ours{n}" for n in range(1000)}
    chains = [nft.new_chain(TABLE, Chain(name, ())) for name in sorted(ours)]
    kernel.transact([nft.new_table(TABLE), *chains])
    before = kernel.generation_id()
    for _ in range(200):
        assert set(kernel.chains(TABLE)) == ours
    assert kernel.generation_id() > before + 10


def test_a_hundred_thousand_elements_are_taken_in_chunks(kernel: Nftables) -> None:
    base = number("198.18.0.0")
    ranges = [(4, base + 2 * n, base + 2 * n, PAY) for n in range(60_000)]
    ranges += [(4, base + 200_000 + 16 * n, base + 200_000 + 16 * n + 7, PAY) for n in range(40_000)]
    large = made(1, ranges=spans.gather(ranges))
    kernel.replace(large)
    assert large.elements == 100_000
    assert len(kernel.keys(TABLE, "address4_1")) == 60_000
    assert len(kernel.keys(TABLE, "network4_1")) == 0
    assert len(kernel.keys(TABLE, "prefix4_29_1")) == 40_000, "so many of one length stand in a hash"
    kernel.remove(TABLE)
    assert not kernel.has_table(TABLE)


def test_a_bulk_load_does_not_hold_up_a_single_element(rig: Rig, kernel: Nftables) -> None:
    """Between two chunks of a large load, others have the kernel's lock: their changes are done while it still runs."""
    kernel.replace(made(1))
    small = rig.within("gateway", Nftables)
    loading = threading.Thread(target=kernel.replace, args=(made(2, single=False, filler=60_000),))
    loading.start()
    changes = 0
    while loading.is_alive():
        small.transact(nft.timed_elements(TABLE, "allow4", [(socket.inet_aton(ALLOWED), 60)]))
        changes += loading.is_alive()
    small.close()
    assert changes >= 5
    assert rig.reach("client", BLOCKED) == "refused"


def test_ranges_at_the_ends_of_the_address_space(rig: Rig, kernel: Nftables) -> None:
    top4, top6 = (1 << 32) - 1, (1 << 128) - 1
    ranges = ((4, 0, 3, PAY), (4, top4 - 3, top4, PAY), (6, 0, 3, PAY), (6, top6 - 3, top6, PAY))
    kernel.replace(made(1, ranges=spans.gather(ranges)))
    text = rig.run("gateway", "nft", "list", "map", "inet", TABLE, "network4_1").stdout
    assert "0.0.0.0/30 : jump alipay_payment" in text
    assert "255.255.255.252/30 : jump alipay_payment" in text
    text = rig.run("gateway", "nft", "list", "map", "inet", TABLE, "network6_1").stdout
    assert "::/126 : jump alipay_payment" in text
    assert "ffff:ffff:ffff:ffff:ffff:ffff:ffff:fffc/126 : jump alipay_payment" in text


@pytest.mark.parametrize(
    "meddling",
    [
        f"delete table inet {TABLE}", f"flush table inet {TABLE}", f"flush chain inet {TABLE} alipay_payment",
        f"add table inet {TABLE} {{ flags dormant; }}", f"insert rule inet {TABLE} forward accept",
    ],
)  # fmt: skip
def test_rules_that_others_have_changed_are_noticed_and_laid_down_again(rig: Rig, kernel: Nftables, meddling: str) -> None:
    table = made(1)
    assert not kernel.intact(nft.shape(table))
    kernel.replace(table)
    rig.run("gateway", "nft", "add table inet other")
    assert kernel.intact(nft.shape(table)), "others may do what they like with theirs"
    rig.run("gateway", "nft", meddling)
    assert not kernel.intact(nft.shape(table))
    assert rig.reach("client", BLOCKED) == "open"
    table = made(2)
    kernel.replace(table)
    assert kernel.intact(nft.shape(table))
    assert rig.reach("client", BLOCKED) == "refused"


# ── beside others ────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("single", [True, False], ids=["hash", "interval"])
@pytest.mark.parametrize("blocked", [BLOCKED, BLOCKED6])
def test_an_open_flow_is_cut_although_others_accept_what_is_established(
    rig: Rig, kernel: Nftables, single: bool, blocked: str
) -> None:
    rules = "table inet other { chain f { type filter hook forward priority 0; ct state established accept; }; }"
    rig.run("gateway", "nft", rules)
    with rig.socket("client", socket.SOCK_STREAM, blocked) as flow:
        flow.settimeout(3)
        flow.connect((blocked, 443))
        flow.sendall(b"before")
        assert flow.recv(64) == b"before"
        kernel.replace(made(1, single=single))
        flow.sendall(b"after")
        with pytest.raises(ConnectionResetError):
            flow.recv(64)
    assert f"{LAN4}.10" not in listing(rig)
