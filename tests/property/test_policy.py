"""The compiled policy and the naive reading of the contract give the same verdict, for names and addresses."""

import ipaddress
import itertools

from hypothesis import given, settings
from hypothesis import strategies as st

from embargo import names
from embargo.lists import image, policy
from embargo.lists.image import Image
from embargo.lists.policy import App, Class, List, Selection
from support import oracle
from support.strategies import ADDRESSES, APPS, ASKED, LOCAL, SELECTIONS


def as_claim(built: Image, decision: policy.Decision) -> oracle.Claim:
    class_, source = built.classes[decision.class_], built.sources[decision.source]
    assert class_ == source.class_
    return oracle.Claim(class_.app, class_.function, source.path, decision.line, decision.rule)


@settings(max_examples=300)
@given(APPS, LOCAL, SELECTIONS, st.lists(ASKED | ADDRESSES, min_size=1, max_size=8))
def test_every_claim_and_verdict_is_the_oracles(
    apps: tuple[App, ...],
    local: tuple[List, ...],
    selection: Selection,
    asked: list[names.Name | ipaddress.IPv4Address | ipaddress.IPv6Address],
) -> None:
    combined = policy.combine(apps, local, selection)
    built = Image(image.encode(combined))
    board = policy.select(apps, combined.classes, selection)
    for each in asked:
        found = built.lookup(each) if isinstance(each, bytes) else built.lookup_address(each.packed)
        assert [as_claim(built, claim) for claim in found] == oracle.claims(apps, local, selection, each)
        action, decision = board.choose(found)
        said = as_claim(built, decision) if decision else None
        assert (action, said) == oracle.verdict(apps, local, selection, each)


@given(APPS, LOCAL, SELECTIONS)
def test_ranges_are_disjoint_sorted_and_joined(apps: tuple[App, ...], local: tuple[List, ...], selection: Selection) -> None:
    combined = policy.combine(apps, local, selection)
    for ranges in combined.networks.values():
        for first, last, claims in ranges:
            assert first <= last
            assert claims
        for before, after in itertools.pairwise(ranges):
            assert before[1] < after[0]
            assert before[1] + 1 < after[0] or before[2] != after[2]


@given(APPS, LOCAL, SELECTIONS, st.lists(ASKED, min_size=1, max_size=5))
def test_an_app_that_is_off_changes_no_verdict_of_another(
    apps: tuple[App, ...], local: tuple[List, ...], selection: Selection, asked: list[names.Name]
) -> None:
    """Only `!` takes a name out, and only for its own app."""
    for missing in apps:
        rest = tuple(app for app in apps if app is not missing)
        whole, part = policy.combine(apps, local, selection), policy.combine(rest, local, selection)
        one, two = Image(image.encode(whole)), Image(image.encode(part))
        for name in asked:
            others = [as_claim(one, claim) for claim in one.lookup(name)]
            assert [claim for claim in others if claim.app != missing.id] == [as_claim(two, c) for c in two.lookup(name)]


@given(APPS)
def test_classes_are_sorted_with_the_local_ones_first(apps: tuple[App, ...]) -> None:
    found = policy.classes_of(apps)
    assert found[:2] == (policy.LOCAL_ALLOW, policy.LOCAL_BLOCK)
    assert list(found[2:]) == sorted(found[2:])
    assert {Class("bypass", "dot"), Class("bypass", "doq")} <= set(found)
