"""The compiled policy and the naive reading of the contract give the same verdict, for names and addresses."""

import ipaddress
import itertools

from hypothesis import given, settings
from hypothesis import strategies as st

from embargo import image, lists, names, policy
from embargo.image import Image
from embargo.lists import Guard
from embargo.policy import Action, App, Class, Level, List, Selection, Source
from support import oracle

LETTERS = st.sampled_from("ab")
NAMES = st.lists(LETTERS, min_size=1, max_size=4).map(".".join)
V4 = st.builds(
    lambda value, length: str(ipaddress.ip_network((0xCB007100 | value & 31, length), strict=False)), st.integers(0, 31),
    st.integers(26, 32),
)  # fmt: skip
V6 = st.builds(
    lambda value, length: str(ipaddress.ip_network(((0x20010DB8 << 96) | value, length), strict=False)),
    st.integers(0, 31), st.integers(122, 128),
)  # fmt: skip
NETWORKS = V4 | V6
LINES = st.one_of(
    NAMES, NAMES.map("={}".format), NAMES.map("!{}".format), NETWORKS, NETWORKS.map("!{}".format), st.just("# comment")
)
TEXTS = st.lists(LINES, max_size=6).map("\n".join)
ASKED = st.lists(LETTERS, max_size=6).map(lambda labels: names.from_text(".".join(labels) or "."))
ADDRESSES = st.builds(
    lambda base, value: ipaddress.ip_address(base + value), st.sampled_from([0xCB007100, 0x20010DB8 << 96]), st.integers(0, 70)
)


def parsed(path: str, level: Level, app: str, function: str, shared: bool, text: str) -> List:
    source = Source(path, level, app, function, shared)
    found = lists.parse(text.encode(), file=path, source=source, guard=Guard())
    assert not found.problems
    return found


@st.composite
def an_app(draw: st.DrawFn, app: str, functions: tuple[str, ...]) -> App:
    files = draw(st.lists(st.tuples(st.sampled_from(functions), st.booleans()), unique=True, max_size=4))
    found = [
        parsed(f"{app}/{function}{'.shared' * shared}.list", Level.APPS, app, function, shared, draw(TEXTS))
        for function, shared in sorted(files)
    ]
    return App(app, app, default=draw(st.booleans()), lists=tuple(found))


APPS = st.tuples(
    an_app("alipay", ("payment", "telemetry", "httpdns", "core")),
    an_app("bypass", ("doh", "httpdns", "canary")),
    an_app("qq", ("payment", "login")),
)
LOCAL = st.tuples(TEXTS, TEXTS, TEXTS).map(
    lambda texts: (
        parsed("allow.list", Level.ALLOW, "local", "allow", False, texts[0]),
        parsed("local/allow.list", Level.ALLOW, "local", "allow", False, texts[1]),
        parsed("block.list", Level.BLOCK, "local", "block", False, texts[2]),
    )
)
SELECTIONS = st.builds(
    Selection,
    apps=st.one_of(st.sampled_from(["default", "all"]), st.lists(st.sampled_from(["alipay", "qq"]), unique=True).map(tuple)),
    functions=st.one_of(
        st.just("all"), st.lists(st.sampled_from(["payment", "telemetry", "login"]), unique=True).map(tuple)
    ),
    bypass=st.lists(st.sampled_from(["doh", "httpdns", "canary", "dot"]), unique=True).map(tuple),
    shared=st.one_of(st.booleans(), st.lists(st.sampled_from(["alipay", "qq"]), unique=True).map(tuple)),
    mode=st.sampled_from([Action.BLOCK, Action.AUDIT]),
)  # fmt: skip


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
