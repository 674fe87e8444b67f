"""The firewall and the policy cannot disagree: for any policy, address and client, one verdict."""

import ipaddress
import itertools

from hypothesis import given
from hypothesis import strategies as st

from embargo.firewall import ruleset
from embargo.lists import image, policy
from embargo.lists.image import Image
from embargo.lists.policy import Action, App, List, Selection
from support.firewall import Firewall, Packet
from support.strategies import ADDRESSES, APPS, LOCAL, SELECTIONS

CLIENT = {4: "192.0.2.100", 6: "2001:db8:5::5"}
Address = ipaddress.IPv4Address | ipaddress.IPv6Address


def compiled(apps: tuple[App, ...], local: tuple[List, ...], selection: Selection) -> tuple[Image, policy.Switchboard]:
    combined = policy.combine(apps, local, selection)
    return Image(image.encode(combined)), policy.select(apps, combined.classes, selection)


@given(APPS, LOCAL, SELECTIONS, st.lists(ADDRESSES, min_size=1, max_size=6), st.booleans())
def test_a_packet_meets_the_class_that_the_policy_names(
    apps: tuple[App, ...], local: tuple[List, ...], selection: Selection, asked: list[Address], lan: bool
) -> None:
    built, board = compiled(apps, local, selection)
    table = Firewall(ruleset.build(ruleset.spec(built, board, 1, lan=("lan0",) if lan else ())))
    for address in asked:
        action, decision = board.choose(built.lookup_address(address.packed))
        client = CLIENT[address.version]
        for packet in (Packet(client, str(address), iif="lan0"), Packet(str(address), client, oif="lan0")):
            fate = table.pass_through("forward", packet)
            assert fate.verdict == ("reject reset" if action is Action.BLOCK else "accept")
            class_ = {ruleset.chain_name(built.classes[decision.class_])} if decision else set()
            assert set(fate.counted) == class_


@given(APPS, LOCAL, SELECTIONS)
def test_sets_hold_disjoint_sorted_ranges_each_in_the_set_of_its_kind(
    apps: tuple[App, ...], local: tuple[List, ...], selection: Selection
) -> None:
    built, board = compiled(apps, local, selection)
    made = ruleset.build(ruleset.spec(built, board, 5))
    names = {chain.name for chain in made.chains}
    for family in (4, 6):
        kinds = {each.interval: each.elements for each in made.sets if each.vmap and each.type == f"ipv{family}_addr"}
        assert all(first < last for first, last, _ in kinds[True])
        assert all(first == last for first, last, _ in kinds[False])
        both = sorted([*kinds[True], *kinds[False]])
        assert all(one.last < two.first for one, two in itertools.pairwise(both))
        assert {element.chain for element in both} <= names
    assert len({each.name for each in made.sets}) == len(made.sets)
    assert set(made.counters) <= names
