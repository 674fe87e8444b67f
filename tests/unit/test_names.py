"""Names: text to wire and back, and out of a message."""

import re

import pytest

from embargo import names
from embargo.errors import MessageError
from embargo.names import Name

LABEL63 = "a" * 63
LONGEST = ".".join([LABEL63, LABEL63, LABEL63, "a" * 61])  # 3 · 64 + 62 + 1 = 255 octets


def wire(*labels: bytes) -> Name:
    return Name(b"".join(bytes([len(label)]) + label for label in labels) + b"\0")


# ── from text ────────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("text", "labels"),
    [
        ("alipay.com", [b"alipay", b"com"]),
        ("alipay.com.", [b"alipay", b"com"]),
        ("AliPay.COM", [b"alipay", b"com"]),
        ("com", [b"com"]),
        ("_dns.resolver.arpa", [b"_dns", b"resolver", b"arpa"]),
        ("*.example", [b"*", b"example"]),
        ("a b.example", [b"a b", b"example"]),
        (r"a\.b.example", [b"a.b", b"example"]),
        (r"a\\.example", [b"a\\", b"example"]),
        (r"a\.", [b"a."]),
        (r"a\\.", [b"a\\"]),
        (r"\000\255.example", [b"\0\xff", b"example"]),
        (r"\065bc.example", [b"abc", b"example"]),
        (r"\@\;\".example", [b'@;"', b"example"]),
        ("bücher.example", [b"xn--bcher-kva", b"example"]),
        ("BÜCHER.example", [b"xn--bcher-kva", b"example"]),
        ("支付宝.中国", [b"xn--bnq242a7nh", b"xn--fiqs8s"]),
        ("faß.example", [b"xn--fa-hia", b"example"]),
        ("\uff41\uff4c\uff49\uff50\uff41\uff59.com", [b"alipay", b"com"]),
        ("alipay\u3002com", [b"alipay", b"com"]),
        ("alipay\uff0ecom", [b"alipay", b"com"]),
        ("alipay\uff61com\uff61", [b"alipay", b"com"]),
    ],
)
def test_presentation_format_becomes_wire_form(text: str, labels: list[bytes]) -> None:
    assert names.from_text(text) == wire(*labels)


@pytest.mark.parametrize("text", [".", "\u3002", "\uff0e", "\uff61"])
def test_a_dot_alone_is_the_root(text: str) -> None:
    assert names.from_text(text) == names.ROOT == b"\0"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "empty label"),
        ("..", "empty label"),
        (".com", "empty label"),
        ("a..com", "empty label"),
        ("a.com..", "empty label"),
        ("a\u3002.com", "empty label"),
        ("a\\", "middle of an escape"),
        ("a\\é", "middle of an escape"),
        ("a\\1", r"\1 is not an escape"),
        ("a\\12x", r"\1 is not an escape"),
        ("\\256.com", r"\256 is not an octet"),
        ("\\999.com", r"\999 is not an octet"),
        (r"\001é.com", "mixes escapes and letters outside ASCII"),
        ("\u0300a.com", "not a valid internationalised label"),
        ("💰.com", "not a valid internationalised label"),
        ("a\u200db.com", "not a valid internationalised label"),
        ("\xad.com", "not a valid internationalised label"),
        ("\ud800.com", "not a valid internationalised label"),
        ("é" * 70 + ".com", "not a valid internationalised label"),
    ],
)
def test_what_is_no_name_is_refused_with_the_reason(text: str, said: str) -> None:
    with pytest.raises(ValueError, match=re.escape(said)):
        names.from_text(text)


def test_a_label_has_at_most_63_octets() -> None:
    assert names.from_text(f"{LABEL63}.com") == wire(LABEL63.encode(), b"com")
    with pytest.raises(ValueError, match="a label has 64 octets, at most 63 are allowed"):
        names.from_text(f"{LABEL63}a.com")
    with pytest.raises(ValueError, match="64 octets"):
        names.from_text(r"\097" * 64 + ".com")


def test_a_name_has_at_most_255_octets() -> None:
    assert len(names.from_text(LONGEST[1:])) == 254
    assert len(names.from_text(LONGEST)) == len(names.from_text(LONGEST + ".")) == 255
    with pytest.raises(ValueError, match="it has 256 octets, at most 255 are allowed"):
        names.from_text(LONGEST + "a")


def test_only_ascii_letters_are_folded() -> None:
    """RFC 4343: the octets of other letters are no letters here."""
    name = names.from_text(r"ABC\192\222\131.example")
    assert name == wire(b"abc\xc0\xde\x83", b"example")


# ── to text ──────────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("labels", "text"),
    [
        ([], "."),
        ([b"alipay", b"com"], "alipay.com"),
        ([b"a.b", b"example"], r"a\.b.example"),
        ([b"a\\b", b"example"], r"a\\b.example"),
        ([b"a b\n\x1b[31m\x7f", b"example"], r"a\032b\010\027\09131m\127.example"),
        ([b"\0\xff", b"example"], r"\000\255.example"),
        ([b'"();@$', b"example"], r"\"\(\)\;\@\$.example"),
        ([b"a#b!c=d^e", b"example"], r"a\035b\033c\061d\094e.example"),
        ([b"<script>", b"example"], r"\060script\062.example"),
        ([b"0/25", b"2", b"0", b"192", b"in-addr", b"arpa"], "0/25.2.0.192.in-addr.arpa"),
    ],
)
def test_wire_form_becomes_text_that_is_safe_anywhere(labels: list[bytes], text: str) -> None:
    assert names.to_text(wire(*labels)) == text


def test_suffixes_go_from_the_name_to_its_top_level_domain() -> None:
    name = names.from_text("a.b.com")
    assert list(names.suffixes(name)) == [wire(b"a", b"b", b"com"), wire(b"b", b"com"), wire(b"com")]
    assert list(names.suffixes(names.ROOT)) == []


def test_labels_leave_the_root_out() -> None:
    assert list(names.labels(names.from_text("a.b.com"))) == [b"a", b"b", b"com"]
    assert list(names.labels(names.ROOT)) == []


def test_reverse_names_of_addresses() -> None:
    assert names.to_text(names.reverse(bytes([192, 0, 2, 53]))) == "53.2.0.192.in-addr.arpa"
    packed = bytes.fromhex("20010db8000000000000000000000053")
    assert names.to_text(names.reverse(packed)) == "3.5." + "0." * 22 + "8.b.d.0.1.0.0.2.ip6.arpa"


# ── out of a message ─────────────────────────────────────────────────────────────────────────────────────────────────────

HEADER = bytes(12)


def refused(packet: bytes, offset: int) -> None:
    with pytest.raises(MessageError) as caught:
        names.read(packet, offset)
    assert caught.value.rcode == names.FORMERR


def test_a_name_is_read_in_lower_case_with_the_offset_behind_it() -> None:
    packet = HEADER + b"\3WwW\6AliPay\3COM\0" + b"rest"
    assert names.read(packet, 12) == (wire(b"www", b"alipay", b"com"), 12 + 16)


def test_the_root_is_a_name() -> None:
    assert names.read(HEADER + b"\0", 12) == (names.ROOT, 13)


def test_a_pointer_leads_back_and_the_offset_is_behind_the_first_one() -> None:
    packet = HEADER + b"\6alipay\3com\0" + b"\3www\xc0\x0c" + b"\2m1\xc0\x18" + b"rest"
    names_at: dict[int, Name] = {}
    assert names.read(packet, 12, names_at) == (wire(b"alipay", b"com"), 24)
    assert names.read(packet, 24, names_at) == (wire(b"www", b"alipay", b"com"), 30)
    assert names.read(packet, 30, names_at) == (wire(b"m1", b"www", b"alipay", b"com"), 35)


@pytest.mark.parametrize(
    ("target", "name"),
    [(12, b"\1a\1b\0"), (14, b"\1b\0"), (16, b"\0"), (17, b"\1c\1b\0"), (19, b"\1b\0"), (21, b"\1a\1b\0")],
    ids=["a name", "the name above", "the root", "a name with a pointer", "its pointer", "a bare pointer"],
)
def test_a_pointer_may_lead_to_any_place_where_a_name_began(target: int, name: bytes) -> None:
    packet = HEADER + b"\1a\1b\0" + b"\1c\xc0\x0e" + b"\xc0\x0c" + bytes([0xC0, target])
    names_at: dict[int, Name] = {}
    at = 12
    for _ in range(3):
        _, at = names.read(packet, at, names_at)
    assert names.read(packet, at, names_at) == (name, len(packet))


@pytest.mark.parametrize("target", [0, 4, 11, 13, 15, 17, 20, 30])
def test_a_pointer_to_what_is_no_name_is_refused(target: int) -> None:
    """The header, the middle of a label, octets behind a name: a record copied into another message would change."""
    packet = HEADER + b"\1a\1b\0" + b"\0\1\0\1" + bytes([0xC0, target])
    names_at: dict[int, Name] = {}
    names.read(packet, 12, names_at)
    with pytest.raises(MessageError):
        names.read(packet, 21, names_at)


@pytest.mark.parametrize(
    ("tail", "offset"),
    [
        (b"\xc0\x0c", 12),  # to itself
        (b"\xc0\x0e\1a\0", 12),  # forward
        (b"\1a\xc0\x0c", 12),  # to the name it ends
        (b"\1a\xc0\x10\1b\xc0\x0c", 16),  # two that lead to each other
        (b"\xc0\x0e\xc0\x0c", 14),
        (b"\0\1a\xc0\x0d", 13),
        (b"\xc0\x0e\xc0\x0c\1a\xc0\x0c", 16),  # into a pair that lead to each other
        (b"\1b\xc0\x0c\1a\xc0\x0c", 16),  # into one that leads to itself
        (b"\xc0\x0e\0\0\1a\xc0\x0c", 16),  # back, then forward
    ],
    ids=["self", "forward", "own", "pair", "bare pair", "own again", "into a pair", "into a loop", "back and forward"],
)
def test_a_pointer_that_does_not_lead_back_is_refused(tail: bytes, offset: int) -> None:
    refused(HEADER + tail, offset)


@pytest.mark.parametrize("octet", [0x40, 0x7F, 0x80, 0xBF])
def test_the_two_other_kinds_of_label_are_refused(octet: int) -> None:
    refused(HEADER + bytes([octet]) + b"a" * 200 + b"\0", 12)


@pytest.mark.parametrize("tail", [b"", b"\3ww", b"\3www", b"\3www\xc0", b"\xc0"])
def test_a_name_that_ends_in_the_air_is_refused(tail: bytes) -> None:
    refused(HEADER + tail, 12)


def test_a_name_of_255_octets_is_read_and_one_of_256_is_not() -> None:
    longest = names.from_text(LONGEST)
    assert names.read(HEADER + longest, 12) == (longest, 12 + 255)
    refused(HEADER + longest[:192] + b"\x3e" + b"a" * 62 + b"\0", 12)
    refused(HEADER + b"\1a" + longest, 12)


def test_the_limit_holds_across_pointers() -> None:
    for name, fits in ((LONGEST, False), (LONGEST[2:], True)):
        packet = HEADER + names.from_text(name) + b"\1a\xc0\x0c"
        names_at: dict[int, Name] = {}
        _, at = names.read(packet, 12, names_at)
        if fits:
            assert len(names.read(packet, at, names_at)[0]) == 255
        else:
            with pytest.raises(MessageError):
                names.read(packet, at, names_at)
