"""What is compiled gives what the Python function gives that it stands for."""

from typing import Any

import dns.rrset
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from embargo import accelerator
from embargo.dns import message, response
from embargo.dns.message import Answer, Lead
from embargo.errors import ListError, MessageError
from embargo.lists import image, lists, policy
from embargo.lists.lists import Guard
from embargo.lists.policy import App, Level, List, Selection, Source
from embargo.names import Name
from embargo.native import response as native
from support import twins
from support.playbook import query
from support.responses import OPTIONS, QUESTION, SECTIONS, build, mutated
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


def test_every_twin_is_there() -> None:
    """Else the tests below compare Python with itself."""
    assert all(map(accelerator.load, accelerator.TWINS))


def both(function: Any, *arguments: Any) -> tuple[Any, Any]:
    """(compiled, Python)"""

    def result() -> Any:
        try:
            return function(*arguments)
        except MessageError as error:
            return type(error), error.rcode

    one = result()
    with pytest.MonkeyPatch.context() as patch:
        twins.without(patch)
        return one, result()


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


@settings(max_examples=500)
@given(SECTIONS, st.sampled_from((0, 3, 2)), st.booleans(), OPTIONS, st.booleans(), st.data())
def test_a_response(sections: Any, rcode: int, edns: bool, options: Any, torn: bool, data: st.DataObject) -> None:
    packet = build(sections, rcode, edns, options)
    packet = mutated(data.draw, packet) if torn else packet
    if response.matches(packet, int.from_bytes(packet[:2]), QUESTION):
        one, two = both(response.parse, packet, QUESTION)
        assert one == two
        assert type(one) is type(two)


@pytest.mark.parametrize("rcode", [0, 3])
@pytest.mark.parametrize("records", [["A"], ["A", "A"], ["CNAME b.test", "A"], ["CNAME b.test", "CNAME c.x", "A", "A"], []])
@pytest.mark.parametrize("zone", ["", "test", "a.test"])
def test_the_usual_response_is_not_left_to_python(rcode: int, records: list[str], zone: str) -> None:
    owner = "a.test"
    answers: list[dns.rrset.RRset] = []
    for record in records:
        rtype, _, target = record.partition(" ")
        data = f"{target}." if target else f"192.0.2.{len(answers)}"
        answers.append(dns.rrset.from_text(f"{owner}.", 300, "IN", rtype, data))
        owner = target or owner
    soa = [dns.rrset.from_text(f"{zone}.", 900, "IN", "SOA", "ns.test. mail.test. 1 2 3 4 30")] if zone else []
    assert native.read(build((answers, soa, []), rcode, True), QUESTION, Answer, Lead) is not None


@given(
    st.sampled_from(("a.test", "A.Test", ".", "x" * 63 + ".test")), st.sampled_from(("A", "HTTPS", "ANY", "AXFR", "OPT")),
    st.booleans(), st.booleans(), st.sampled_from((0, 512, 1232, 4096)), st.booleans(), st.data(),
)  # fmt: skip
def test_a_query(name: str, qtype: str, edns: bool, do: bool, payload: int, torn: bool, data: st.DataObject) -> None:
    packet = query(name, qtype, edns=edns, do=edns and do, **({"payload": payload} if edns else {}))
    packet = mutated(data.draw, packet) if torn else packet
    if packet[2] & 0x80 == 0:
        one, two = both(message.parse_query, packet)
        assert one == two
        assert type(one) is type(two)
