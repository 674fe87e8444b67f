"""The ruleset: golden files for its text, a naive reading of its values for what it does to packets."""

import ipaddress
from unittest import mock

import pytest
from hypothesis import given
from hypothesis import strategies as st

from embargo.firewall import layout, listing, ruleset, spans
from embargo.firewall.ruleset import Spec
from embargo.firewall.table import ACCEPT, Address, Chain, Counter, Element, Judged, Jump, Log, Meta, Reject, Ruleset, Set
from embargo.lists import image, policy
from embargo.lists.policy import Action, Class, Selection
from golden import rulesets
from support import catalogue
from support.firewall import Fate, Firewall, Packet

CASES = rulesets.CASES
CLIENT4, CLIENT6 = "192.0.2.100", "2001:db8:5::5"
SPARED4, SPARED6 = "192.0.2.7", "2001:db8:1::9"
LISTED4, LISTED6, FREE4, FREE6 = "203.0.113.7", "2001:db8:a::7", "203.0.113.17", "2001:db8:b::7"


def sets(case: Ruleset) -> dict[str, Set]:
    return {each.name: each for each in case.sets}


def chains(case: Ruleset) -> dict[str, Chain]:
    return {each.name: each for each in case.chains}


def forward(
    case: str, src: str, dst: str, *, proto: str = "tcp", port: int = 443, alive: bool = True, lan: str = "lan0"
) -> Fate:
    """A client's packet on its way through the gateway."""
    return Firewall(CASES[case](), alive=alive).pass_through("forward", Packet(src, dst, proto, port, lan, "wan0"))


# ── as text ──────────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("name", CASES)
def test_the_text_is_the_golden_files(name: str) -> None:
    golden = (rulesets.HERE / f"{name}.nft").read_text()
    assert listing.render(CASES[name]()) == golden, "as it should be? python -m tests.golden.rulesets"


def test_every_golden_file_has_its_case() -> None:
    assert {path.stem for path in rulesets.HERE.iterdir()} == set(CASES)


def test_the_text_is_the_same_each_time() -> None:
    for case in CASES.values():
        assert listing.render(case()) == listing.render(case())


def test_elements_can_be_left_out_of_the_text() -> None:
    text = listing.render(CASES["except_with_lan"](), elements=False)
    assert "elements =" not in text
    assert text.count("\t\t# 5 elements\n") == 1
    assert "203.0.113" not in text
    assert len(text.splitlines()) < len(listing.render(CASES["except_with_lan"]()).splitlines())


def test_the_table_can_have_another_name() -> None:
    what = Spec(1, (), {})
    assert ruleset.build(what).table == "embargo"
    assert listing.render(ruleset.build(what, "embargo_check")).startswith("table inet embargo_check {\n")


# ── names and generations ────────────────────────────────────────────────────────────────────────────────────────────────


def test_content_carries_its_generation_and_what_the_kernel_keeps_does_not() -> None:
    names = sets(rulesets.made(generation=42, lan=("lan0",), except_=rulesets.EXCEPT, port=53, fail="open"))
    assert {name for name, each in names.items() if not each.keep} == {
        "address4_42", "network4_42", "learnt4_42", "except4_42", "address6_42", "network6_42", "learnt6_42", "except6_42",
        "to_embedded_42", "from_embedded_42", "lan_42",
    }  # fmt: skip
    assert {name for name, each in names.items() if each.keep} == {"allow4", "allow6", "alive"}


def test_the_interface_of_verify_is_filtered_where_a_lan_is() -> None:
    assert sets(rulesets.made(generation=1, lan=("lan0",), port=53))["lan_1"].words == ("lan0", ruleset.RESERVED)
    assert not any(each.words for each in rulesets.made(generation=1, fail="open").sets)


def test_two_generations_share_no_content_and_all_chains_and_counters() -> None:
    one, two = rulesets.made(generation=1, lan=("lan0",), port=53), rulesets.made(generation=2, lan=("lan0",), port=53)
    assert set(sets(one)) & set(sets(two)) == {"allow4", "allow6"}
    assert set(chains(one)) == set(chains(two))
    assert one.counters == two.counters


@pytest.mark.parametrize("name", CASES)
def test_everything_that_is_referred_to_is_there(name: str) -> None:
    case = CASES[name]()
    expressions = [expression for chain in case.chains for rule in chain.rules for expression in rule.expressions]
    led = {e.chain for e in expressions if isinstance(e, Jump)} | {
        e.chain for each in case.sets for e in each.elements if e.chain not in ("", ACCEPT)
    }
    used = {e.set_ for e in expressions if isinstance(e, Address)}
    used |= {e.set_ for e in expressions if isinstance(e, Judged)}
    used |= {e.value[1:] for e in expressions if isinstance(e, Meta) and e.value.startswith("@")}
    assert led <= set(chains(case))
    assert used | {"alive"} == set(sets(case)) | {"alive"}
    assert {e.name for e in expressions if isinstance(e, Counter)} == set(case.counters)


def test_a_chain_is_named_after_app_and_function_and_says_so_in_words() -> None:
    case = CASES["no_lan"]()
    rules = chains(case)["alipay_payment"].rules
    assert ruleset.chain_name(Class("alipay", "payment")) == "alipay_payment"
    assert rules[0].expressions == (Counter("alipay_payment"),)
    assert rules[0].comment == "app alipay, function payment"
    assert rules[1].expressions == (Log("embargo alipay/payment", 8137),)


# ── sets ─────────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_single_addresses_stand_in_hash_sets_and_ranges_in_interval_sets() -> None:
    for case in (case() for case in CASES.values()):
        for name, each in sets(case).items():
            if name.startswith("address"):
                assert not each.interval
                assert all(first == last for first, last, _ in each.elements)
            if name.startswith("network"):
                assert each.interval
                assert all(first < last for first, last, _ in each.elements)


def test_what_is_allowed_or_off_stands_in_no_set() -> None:
    held = {element.chain for each in CASES["no_lan"]().sets for element in each.elements if not each.fixed}
    assert held == {"alipay_payment", "alipay_telemetry", "bypass_doh", "qq_payment", "local_block"}
    fate = Firewall(CASES["no_lan"]()).pass_through("forward", Packet(CLIENT4, "203.0.113.65"))  # on the allow list
    assert (fate.verdict, fate.counted) == ("accept", {})


def test_neighbouring_ranges_of_one_class_are_one_element() -> None:
    assert Element(0xCB007100, 0xCB007107, "alipay_payment") in sets(CASES["no_lan"]())["network4_1"].elements
    only = rulesets.made(Selection(apps=("alipay",)), files={"alipay/payment.list": ["203.0.112.0/25", "203.0.112.128/25"]})
    assert sets(only)["network4_1"].elements == (Element(0xCB007000, 0xCB0070FF, "alipay_payment"),)


def test_elements_are_counted() -> None:
    assert CASES["nothing"]().elements == 0
    assert CASES["except_ipv4_alone"]().elements == CASES["no_lan"]().elements + 1


def test_only_classes_that_act_have_a_chain() -> None:
    always = {"to4", "from4", "to6", "from6", "to6_in2", "to6_in12", "from6_in2", "from6_in12", "police", "forward", "output"}
    assert set(chains(CASES["nothing"]())) == always | {"local_block", "learnt_block"}
    assert "bypass_dot" in chains(CASES["lan_fail_closed"]())
    assert "bypass_dot" not in chains(CASES["bypass_ports_off"]())
    assert "qq_core" not in chains(CASES["no_lan"]())
    assert "qq_core" in chains(CASES["everything_on"]())


# ── packets ──────────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("hook", ["forward", "output"])
@pytest.mark.parametrize(("dst", "chain"), [
    (LISTED4, "alipay_payment"), ("203.0.113.8", "qq_payment"), ("203.0.113.129", "bypass_doh"),
    ("198.51.100.99", "local_block"), (LISTED6, "alipay_payment"), ("2001:db8:ff::1", "local_block"),
])  # fmt: skip
def test_a_packet_to_a_listed_address_is_counted_logged_and_rejected(hook: str, dst: str, chain: str) -> None:
    src = CLIENT6 if ":" in dst else CLIENT4
    fate = Firewall(CASES["no_lan"]()).pass_through(hook, Packet(src, dst))
    assert (fate.verdict, fate.counted) == ("reject reset", {chain: 1})
    assert fate.logged == [f"embargo {chain.replace('_', '/')}"]
    assert Firewall(CASES["no_lan"]()).pass_through(hook, Packet(src, dst, "udp")).verdict == "reject admin"


@pytest.mark.parametrize(
    ("src", "dst"), [(CLIENT4, FREE4), (CLIENT6, FREE6), (CLIENT4, "203.0.113.80"), (CLIENT4, "198.51.100.8")]
)
def test_a_packet_to_any_other_address_passes(src: str, dst: str) -> None:
    for hook in ("forward", "output"):
        assert Firewall(CASES["no_lan"]()).pass_through(hook, Packet(src, dst)) == Fate()


@pytest.mark.parametrize(("src", "dst"), [(LISTED4, CLIENT4), (LISTED6, CLIENT6)])
def test_the_other_direction_of_a_flow_is_cut_too_when_forwarded(src: str, dst: str) -> None:
    assert forward("no_lan", src, dst).verdict == "reject reset"
    packet = Packet(src, dst, iif="wan0", oif="lan0")
    assert Firewall(CASES["lan_fail_closed"]()).pass_through("forward", packet).verdict == "reject reset"
    assert Firewall(CASES["no_lan"]()).pass_through("output", packet).verdict == "accept"  # a reset of our own


@pytest.mark.parametrize(
    ("proto", "listed", "source"), [("tcp", LISTED4, CLIENT4), ("icmp", LISTED4, "198.51.100.1"), ("icmpv6", LISTED6, CLIENT6)]
)
def test_what_a_reject_sends_to_a_listed_address_is_nobodys_attempt(proto: str, listed: str, source: str) -> None:
    table = Firewall(CASES["no_lan"]())
    assert table.pass_through("output", Packet(source, listed, proto, refusal=True)) == Fate()
    assert table.pass_through("output", Packet(source, listed, proto)).verdict != "accept"


def test_with_lan_interfaces_only_their_packets_are_filtered() -> None:
    assert forward("lan_fail_closed", CLIENT4, LISTED4).verdict == "reject reset"
    assert forward("lan_fail_closed", CLIENT4, LISTED4, lan="wlan0").verdict == "reject reset"
    assert forward("lan_fail_closed", CLIENT4, LISTED4, lan="dmz0").verdict == "accept"
    assert forward("no_lan", CLIENT4, LISTED4, lan="dmz0").verdict == "reject reset"


def test_an_audited_class_is_counted_and_logged_and_passes() -> None:
    fate = forward("audit", CLIENT4, LISTED4)
    assert (fate.verdict, fate.logged) == ("accept", ["embargo alipay/payment"])
    assert fate.counted == {"alipay_payment": 1}
    assert not any(isinstance(e, Reject) for rule in chains(CASES["audit"]())["alipay_payment"].rules for e in rule.expressions)


@pytest.mark.parametrize(("client", "dst"), [(SPARED4, LISTED4), (SPARED6, LISTED6), ("192.0.2.200", LISTED4)])
def test_an_excepted_client_is_never_filtered(client: str, dst: str) -> None:
    table = Firewall(CASES["except_with_lan"]())
    for packet in (Packet(client, dst, iif="lan0"), Packet(client, FREE4 if "." in dst else FREE6, "udp", 53, iif="lan0")):
        assert table.pass_through("forward", packet) == Fate()
        assert table.pass_through("prerouting", packet) == Fate()
    assert table.pass_through("forward", Packet(dst, client, iif="wan0", oif="lan0")) == Fate()
    other = CLIENT4 if "." in dst else CLIENT6
    assert table.pass_through("forward", Packet(other, dst, iif="lan0")).verdict == "reject reset"


@pytest.mark.parametrize(("proto", "port", "chain"), [
    ("tcp", 853, "bypass_dot"), ("udp", 853, "bypass_doq"), ("udp", 784, "bypass_doq"), ("udp", 8853, "bypass_doq"),
])  # fmt: skip
@pytest.mark.parametrize(("client", "server"), [(CLIENT4, FREE4), (CLIENT6, FREE6)])
def test_encrypted_dns_is_blocked_by_its_port(proto: str, port: int, chain: str, client: str, server: str) -> None:
    fate = forward("lan_fail_closed", client, server, proto=proto, port=port)
    assert (fate.counted, fate.verdict) == ({chain: 1}, "reject reset" if proto == "tcp" else "reject admin")
    assert forward("lan_fail_closed", client, server, proto=proto, port=port, lan="dmz0") == Fate()
    assert forward("bypass_ports_off", client, server, proto=proto, port=port) == Fate()


@pytest.mark.parametrize("proto", ["udp", "tcp"])
@pytest.mark.parametrize(("client", "server"), [(CLIENT4, FREE4), (CLIENT6, FREE6)])
def test_port_53_of_filtered_clients_comes_to_us(proto: str, client: str, server: str) -> None:
    """Whatever the address; from other interfaces it is left alone, and what slips past is rejected."""
    table = Firewall(CASES["lan_fail_closed"]())
    assert table.pass_through("prerouting", Packet(client, server, proto, 53, "lan0")).verdict == "redirect 53"
    assert table.pass_through("prerouting", Packet(client, server, proto, 53, "wan0")) == Fate()
    assert table.pass_through("prerouting", Packet(client, server, proto, 443, "lan0")) == Fate()
    leak = forward("lan_fail_closed", client, server, proto=proto, port=53)
    assert leak.verdict == ("reject reset" if proto == "tcp" else "reject port")
    assert leak.counted == {"intercept_leak": 1}
    assert forward("lan_not_intercepted", client, server, proto=proto, port=53) == Fate()


@pytest.mark.parametrize("proto", ["udp", "tcp"])
def test_while_nobody_answers_fail_open_passes_port_53_on_and_fail_closed_rejects_it(proto: str) -> None:
    packet = Packet(CLIENT4, FREE4, proto, 53, "lan0", "wan0")
    for hook, verdict in (("prerouting", "redirect 5353"), ("forward", f"reject {'reset' if proto == 'tcp' else 'port'}")):
        assert Firewall(CASES["lan_fail_open"](), alive=True).pass_through(hook, packet).verdict == verdict
        assert Firewall(CASES["lan_fail_open"](), alive=False).pass_through(hook, packet) == Fate()
        assert Firewall(CASES["lan_fail_closed"](), alive=False).pass_through(hook, packet).verdict != "accept"
    assert forward("lan_fail_open", CLIENT4, LISTED4, alive=False).verdict == "reject reset"


@pytest.mark.parametrize("name", CASES)
def test_the_guardian_finds_the_set_that_it_renews_whenever_fail_is_open(name: str) -> None:
    assert ("alive" in sets(CASES[name]())) == ("fail_open" in name)


def test_our_chains_stand_before_those_of_others() -> None:
    """An established-accept at priority 0 would keep open flows alive; docker's nat at -100 would take port 53."""
    hooks = {name: chain.hook for name, chain in chains(CASES["lan_fail_closed"]()).items() if chain.hook}
    assert {name: (hook.kind, hook.name) for name, hook in hooks.items()} == {
        "forward": ("filter", "forward"), "output": ("filter", "output"), "prerouting": ("nat", "prerouting"),
    }  # fmt: skip
    assert hooks["forward"].priority == hooks["output"].priority < 0
    assert hooks["prerouting"].priority < -100


def test_a_spec_holds_what_acts_and_nothing_else() -> None:
    apps = catalogue.apps(rulesets.FILES)
    selection = Selection(apps=("alipay",), functions=("telemetry",), bypass=(), mode=Action.AUDIT)
    combined = policy.combine(apps, (), selection)
    built = image.Image(image.encode(combined))
    what = ruleset.spec(built, policy.select(apps, combined.classes, selection), 9)
    assert what.classes == ((Class("local", "block"), Action.AUDIT), (Class("alipay", "telemetry"), Action.AUDIT))
    assert not what.ranges[6]
    (found,) = what.ranges[4].values()
    assert [(first & 255, last & 255) for first, last in found.rows()] == [(64, 79), (96, 127), (200, 200)]


# ── very many ────────────────────────────────────────────────────────────────────────────────────────────────────────────

ROWS = st.lists(
    st.tuples(st.sampled_from([4, 6]), st.integers(0, 400), st.integers(0, 40), st.sampled_from(["payment", "telemetry"])),
    max_size=14,
)


def disjoint(rows: list[tuple[int, int, int, str]]) -> tuple[tuple[int, int, int, Class], ...]:
    found: list[tuple[int, int, int, Class]] = []
    for family, first, more, function in sorted(rows):
        if not found or found[-1][0] != family or found[-1][2] < first:
            found.append((family, first, first + more, Class("alipay", function)))
    return tuple(found)


@given(ROWS, st.integers(0, 6))
def test_very_many_are_laid_out_otherwise_and_mean_the_same(rows: list[tuple[int, int, int, str]], many: int) -> None:
    classes = tuple((Class("alipay", function), Action.BLOCK) for function in ("payment", "telemetry"))
    listed = disjoint(rows)
    what = Spec(1, classes, spans.gather(listed), log_group=8137)
    few = ruleset.build(what)
    with mock.patch.object(layout, "MAX_INTERVALS", many):
        built = ruleset.build(what)
    for family, make in ((4, ipaddress.IPv4Address), (6, ipaddress.IPv6Address)):
        mine = [each for each in listed if each[0] == family]
        networks = sets(built)[f"network{family}_1"]
        assert len(networks.elements) <= max(many, sum(first != last for _, first, last, _ in mine)), "bounded"
        for key in {number + step for _, *ends, _ in mine for number in ends for step in (-1, 0, 1) if number + step >= 0}:
            packet = Packet(str(make(2**31)), str(make(key)))
            was, now = (Firewall(each).pass_through("forward", packet) for each in (few, built))
            assert (was.verdict, len(was.logged)) == (now.verdict, len(now.logged)), key
        if len(mine) > many:
            theirs = [s for s in built.sets if s.name.startswith((f"address{family}", f"network{family}", f"prefix{family}"))]
            assert not [e for s in theirs for e in s.elements if s.vmap or e.chain], "in sets, not in maps of verdicts"


@given(st.integers(0, 2**32 - 1), st.integers(0, 2**16))
def test_a_range_is_taken_apart_into_networks_without_a_rest(first: int, more: int) -> None:
    last = min(first + more, 2**32 - 1)
    at = first
    for start, length in spans.networks(32, first, last):
        assert start == at
        network = ipaddress.ip_network((start, length))
        at = int(network[-1]) + 1
    assert at == last + 1


def test_very_many_of_two_modes_stay_in_maps() -> None:
    what = Spec(
        1,
        ((Class("a", "x"), Action.BLOCK), (Class("a", "y"), Action.AUDIT)),
        spans.gather([(4, 1, 9, Class("a", "x")), (4, 20, 20, Class("a", "y"))]),
    )
    with mock.patch.object(layout, "MAX_INTERVALS", 1):
        built = ruleset.build(what)
    assert all(e.chain for s in built.sets for e in s.elements)
    fate = Firewall(built).pass_through("forward", Packet("192.0.2.1", "0.0.0.20"))
    assert (fate.verdict, fate.counted) == ("accept", {"a_y": 1})
