"""Images: lookup is the policy's, the bytes are always the same, and no damage goes unseen."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from embargo import names
from embargo.errors import ImageError
from embargo.lists import image
from embargo.lists.image import Image
from embargo.lists.policy import Claimed, Claims, Class, Decision, Level, Policy, Source
from embargo.names import Name

CLASSES = tuple(Class(f"app{i}", "core") for i in range(4))
SOURCES = tuple(Source(f"app{i}/core.list", level, f"app{i}", "core", False) for i, level in enumerate([*Level, Level.APPS]))
NAMES = st.lists(st.binary(min_size=1, max_size=3), min_size=1, max_size=4).map(
    lambda labels: Name(b"".join(bytes([len(label)]) + label.lower() for label in labels) + b"\0")
)
CLAIMS = st.lists(
    st.builds(Decision, st.integers(0, 3), st.integers(0, 3), st.integers(0, (1 << 32) - 1), st.text(max_size=5)), max_size=3
).map(tuple)  # fmt: skip


@st.composite
def ranges(draw: st.DrawFn, bits: int) -> tuple[tuple[int, int, Claims], ...]:
    cuts = sorted(draw(st.sets(st.integers(0, (1 << bits) - 1), max_size=12)))
    return tuple(
        (first, last, draw(CLAIMS.filter(bool))) for first, last in zip(cuts[::2], cuts[1::2], strict=False)
    )  # fmt: skip


POLICIES = st.builds(
    Policy,
    classes=st.just(CLASSES),
    sources=st.just(SOURCES),
    names=st.dictionaries(NAMES, st.builds(Claimed, CLAIMS, CLAIMS), max_size=20),
    networks=st.fixed_dictionaries({4: ranges(32), 6: ranges(128)}),
)


def below(policy: Policy, name: Name) -> Claims:
    """The dictionary's answer: the name itself, else the nearest listed name above it."""
    first, *above = names.suffixes(name)
    if first in policy.names:
        return policy.names[first].itself
    return next((policy.names[each].below for each in above if each in policy.names), ())


@given(POLICIES, st.lists(NAMES), st.lists(st.binary(min_size=1, max_size=2)))
def test_lookup_is_the_dictionarys_answer(policy: Policy, others: list[Name], labels: list[bytes]) -> None:
    built = Image(image.encode(policy))
    deeper = [Name(bytes([len(label)]) + label.lower() + name) for label in labels for name in policy.names]
    for name in [*policy.names, *others, *deeper]:
        assert built.lookup(name) == below(policy, name)
    assert built.lookup(names.ROOT) == ()


def whole(labels: list[bytes]) -> Name:
    """As many of the labels as a name has room for."""
    name = b""
    for label in labels:
        if len(name) + 1 + len(label) < 255:
            name += bytes([len(label)]) + label
    return Name(name + b"\0")


LONG = st.lists(st.sampled_from((b"a", b"b", b"www", b"c" * 63)), min_size=20, max_size=130).map(whole)


@given(st.lists(LONG, min_size=1, max_size=3), st.lists(st.integers(0, 40), min_size=1, max_size=3))
def test_a_long_name_is_found_by_each_of_its_suffixes(long: list[Name], which: list[int]) -> None:
    """The compiled look-up hashes all suffixes of a long name at once."""
    for name in long:
        assert names.is_name(name)
        above = list(names.suffixes(name))
        listed = {above[at % len(above)]: Claimed((Decision(0, 0, at, "x"),), (Decision(0, 0, at, "y"),)) for at in which}
        policy = Policy(classes=CLASSES, sources=SOURCES, names=listed, networks={4: (), 6: ()})
        assert Image(image.encode(policy)).lookup(name) == below(policy, name)


@given(POLICIES)
def test_the_listed_names_are_the_dictionarys(policy: Policy) -> None:
    found = {name: Claimed(itself, deeper) for name, itself, deeper in Image(image.encode(policy)).listed()}
    assert found == policy.names


@given(POLICIES, st.lists(st.integers(0, (1 << 128) - 1)))
def test_addresses_are_found_in_their_ranges_and_nowhere_else(policy: Policy, others: list[int]) -> None:
    built = Image(image.encode(policy))
    for family, width in ((4, 4), (6, 16)):
        found = policy.networks[family]
        assert tuple(built.ranges(family)) == found
        edges = [value for first, last, _ in found for value in (first - 1, first, last, last + 1)]
        for value in [*edges, *(other >> (128 - 8 * width) for other in others)]:
            if not 0 <= value < 1 << 8 * width:
                continue
            packed = value.to_bytes(width)
            if width == 4 or image.embedded(packed) is None:
                claims = next((claims for first, last, claims in found if first <= value <= last), ())
                assert built.lookup_address(packed) == claims


@given(POLICIES, st.randoms(use_true_random=False))
def test_the_same_policy_gives_the_same_bytes_in_any_order(policy: Policy, shuffle: random.Random) -> None:
    items = list(policy.names.items())
    shuffle.shuffle(items)
    again = Policy(policy.classes, policy.sources, dict(items), policy.networks)
    assert image.encode(again) == image.encode(policy)


@given(POLICIES, st.data())
def test_any_damage_is_an_image_error(policy: Policy, data: st.DataObject) -> None:
    whole = image.encode(policy)
    damaged = bytearray(whole)
    kind = data.draw(st.sampled_from(["octet", "cut", "more", "zeroed", "swapped"]))
    at = data.draw(st.integers(0, len(whole) - 1))
    if kind == "octet":
        damaged[at] ^= data.draw(st.integers(1, 255))
    elif kind == "cut":
        del damaged[at:]
    elif kind == "more":
        damaged += data.draw(st.binary(min_size=1, max_size=64))
    elif kind == "zeroed":
        damaged[at : at + 64] = bytes(len(damaged[at : at + 64]))
    else:
        damaged = damaged[at:] + damaged[:at]
    if damaged == whole:
        return
    with pytest.raises(ImageError):
        Image(bytes(damaged))


@given(st.binary(max_size=400))
def test_any_octets_are_no_image(data: bytes) -> None:
    with pytest.raises(ImageError):
        Image(data)
    with pytest.raises(ImageError):
        Image(image.MAGIC + b"\1\0\0\0\0\0\0\0" + data)
