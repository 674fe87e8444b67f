"""Names, for any octets."""

import io

import dns.name
from hypothesis import example, given
from hypothesis import strategies as st

from embargo import names
from embargo.errors import MessageError
from embargo.lists import lists
from embargo.names import Name

LABELS = st.lists(st.binary(min_size=1, max_size=63), max_size=5).filter(lambda labels: sum(map(len, labels)) < 250)


def wire(labels: list[bytes]) -> Name:
    return Name(b"".join(bytes([len(label)]) + label.lower() for label in labels) + b"\0")


@given(LABELS)
def test_any_name_survives_its_text(labels: list[bytes]) -> None:
    name = wire(labels)
    text = names.to_text(name)
    assert text.isascii()
    assert text.isprintable()
    assert " " not in text
    assert names.from_text(text) == name


@given(LABELS)
def test_an_independent_library_reads_our_text_as_the_same_name(labels: list[bytes]) -> None:
    assert dns.name.from_text(names.to_text(wire(labels))).to_wire() == wire(labels)


@given(LABELS)
def test_we_read_an_independent_librarys_text_as_the_same_name(labels: list[bytes]) -> None:
    assert names.from_text(dns.name.Name([*labels, b""]).to_text()) == wire(labels)


@given(LABELS)
def test_a_list_reads_our_text_as_the_same_name_or_refuses_it(labels: list[bytes]) -> None:
    try:
        entry = lists.parse_entry(names.to_text(wire(labels)))
    except ValueError:
        return
    assert entry.name == wire(labels)


@given(st.text(max_size=300))
@example("\ud800")
@example("\\")
def test_any_text_is_a_name_or_a_value_error(text: str) -> None:
    try:
        name = names.from_text(text)
    except ValueError:
        return
    assert name[-1] == 0
    assert len(name) <= 255
    assert names.from_text(names.to_text(name)) == name


#: octets that look like names more often than chance would have it
PACKETS = st.lists(
    st.one_of(
        st.binary(max_size=8),
        st.sampled_from([b"\0", b"\1a", b"\3com\0", b"\x3f" + b"a" * 63]),
        st.integers(0, 90).map(lambda target: bytes([0xC0, target])),
    )
).map(b"".join)


@given(PACKETS, st.integers(0, 100))
def test_any_octets_are_a_name_or_a_message_error(packet: bytes, offset: int) -> None:
    try:
        name, end = names.read(packet, offset)
    except MessageError:
        return
    assert offset < end <= len(packet)
    assert len(name) <= 255
    assert name == wire(list(names.labels(name)))


@given(PACKETS)
def test_what_is_read_an_independent_library_reads_too(packet: bytes) -> None:
    """One name after the other, each with pointers into those before it."""
    names_at: dict[int, Name] = {}
    at = 0
    while True:
        try:
            name, end = names.read(packet, at, names_at)
        except MessageError:
            break
        theirs, used = dns.name.from_wire(packet, at)
        assert (name, end) == (theirs.canonicalize().to_wire(), at + used)
        at = end


@given(st.lists(st.lists(st.sampled_from([b"a", b"b", b"www", b"com"]), max_size=4), max_size=12))
def test_what_an_independent_library_compresses_is_read(wanted: list[list[bytes]]) -> None:
    made = io.BytesIO(bytes(12))
    made.seek(12)
    table: dict[dns.name.Name, int] = {}
    for labels in wanted:
        dns.name.Name([*labels, b""]).to_wire(made, table)
    names_at: dict[int, Name] = {}
    at = 12
    for labels in wanted:
        name, at = names.read(made.getvalue(), at, names_at)
        assert name == wire(labels)


@given(st.binary(max_size=20), LABELS)
def test_a_name_is_read_wherever_it_stands(before: bytes, labels: list[bytes]) -> None:
    name = wire(labels)
    assert names.read(before + name + b"behind", len(before)) == (name, len(before) + len(name))


@given(LABELS)
def test_suffixes_are_slices_each_shorter_by_a_label(labels: list[bytes]) -> None:
    found = list(names.suffixes(wire(labels)))
    assert found == [wire(labels[i:]) for i in range(len(labels))]
