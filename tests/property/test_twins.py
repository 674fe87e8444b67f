"""What is compiled gives what the Python function gives that it stands for."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from embargo import _bulk, accelerator, image, lists, policy
from embargo.errors import ListError
from embargo.lists import Guard
from embargo.names import Name
from embargo.policy import App, Level, List, Selection, Source
from support.strategies import APPS, LOCAL, SELECTIONS

LABELS = st.sampled_from(
    ("a", "b", "www", "com", "example", "x-_0", "9", "0a", "A", "a" * 63, "a" * 64, "", "\u00e9", "*", "\\\\046", " ")
)  # fmt: skip
NAMES = st.lists(LABELS, min_size=1, max_size=5).map(".".join) | st.integers(1, 130).map(lambda n: ".".join(["a"] * n))
LINES = st.builds(
    "".join,
    st.tuples(
        st.sampled_from(("", "", "", " ", "\t ", "=", "!", "! ", "==", "#", "\r")),
        NAMES | st.sampled_from(("192.0.2.1", "192.0.2.0/24", "2001:db8::/32", "", "x" * 5000)),
        st.sampled_from(("", "", "", " ", " # seen", "# x", "\t#\r", "##.ad", " \r", "\r", "\x0b", " \u3000", "\x0c# a")),
    ),
)
FILES = st.lists(LINES, max_size=12).flatmap(
    lambda lines: st.sampled_from(("\n", "\r\n", "\r")).map(lambda end: end.join(lines).encode())
)
SUSPECTS = frozenset(map(Name, (b"\3com\0", b"\1b\3com\0", b"\1*\7example\0")))


def both(function: Any, *arguments: Any) -> tuple[Any, Any]:
    """(compiled, Python)"""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(accelerator, "bulk", _bulk)
        one = function(*arguments)
        patch.setattr(accelerator, "bulk", None)
        return one, function(*arguments)


@settings(max_examples=400)
@given(FILES, st.sampled_from((b"\n", b"\r")), st.sampled_from((None, frozenset(), SUSPECTS, lists.Everything())))
def test_scan(data: bytes, end: bytes, suspects: Any) -> None:
    one, two = both(lists.scan, data, end, suspects)
    assert one == two


@given(FILES)
def test_the_entries_of_a_list_are_those_that_its_lines_have_one_by_one(data: bytes) -> None:
    """Whether a line is usual or not must not be seen."""
    source = Source("a.list", Level.APPS, "a", "core", False)
    guard = Guard(public_suffix=lambda name: name in SUSPECTS)  # everything is asked for: no line is usual
    try:
        usual, slow = (lists.parse(data, file="a.list", source=source, guard=g) for g in (Guard(suspects=SUSPECTS), guard))
    except ListError:
        return
    plain = {entry for entry in usual.entries if entry.name not in SUSPECTS or entry.exception}
    assert plain == {entry for entry in slow.entries if entry.name not in SUSPECTS or entry.exception}


@settings(max_examples=300)
@given(APPS, LOCAL, SELECTIONS)
def test_a_policy_and_its_image(apps: tuple[App, ...], local: tuple[List, ...], selection: Selection) -> None:
    one, two = both(policy.combine, apps, local, selection)
    assert one == two
    assert list(one.names) == list(two.names)
    native, python = both(image.encode, one)
    assert native == python


@given(st.lists(st.integers(0, 3000), unique=True, max_size=200))
def test_a_large_table(numbers: list[int]) -> None:
    found = lists.parse(
        "".join(f"n{n}.example{n % 3}.test\n" for n in numbers).encode(),
        file="a.list",
        source=Source("a.list", Level.APPS, "a", "core", False),
        guard=Guard(),
    )
    made = policy.combine((App("a", "A", lists=(found,)),), (), Selection(apps="all", functions="all"))
    assert len(made.plain.starts) == len(numbers)
    native, python = both(image.encode, made)
    assert native == python
