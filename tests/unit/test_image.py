"""The policy image: what is written is what is looked up, and anything damaged is refused."""

import hashlib
import ipaddress
import mmap
from pathlib import Path
from zlib import crc32

import pytest

from embargo import names
from embargo.errors import ImageError
from embargo.lists import image, policy
from embargo.lists.image import Image
from embargo.lists.policy import Claimed, Claims, Class, Decision, Level, Policy, Selection, Source
from embargo.names import Name
from support import catalogue
from support.catalogue import local

EVERYTHING = Selection(apps="all", functions="all")
FILES = {
    "alipay/payment.list": ["alipay.com", "!mail.alipay.com", "=pay.example.com", "203.0.113.0/24", "203.0.113.7"],
    "alipay/httpdns.list": ["mygw.alipay.com", "2001:db8::/32"],
    "qq/telemetry.list": ["alipay.com", "203.0.113.128/25", "2001:db8:7::/48"],
    "bypass/canary.list": ["use-application-dns.net"],
}


def build() -> bytes:
    own = (local(Level.ALLOW, "ok.alipay.com"), local(Level.BLOCK, "bad.example"))
    return image.encode(policy.combine(catalogue.apps(FILES), own, EVERYTHING))


DATA = build()


def rules(claims: Claims) -> list[str]:
    return [claim.rule for claim in claims]


def lookup(built: Image, asked: str) -> list[str]:
    return rules(built.lookup(names.from_text(asked)))


def address(built: Image, text: str) -> list[str]:
    return rules(built.lookup_address(ipaddress.ip_address(text).packed))


def one_class(*claimed: str, v4: tuple[tuple[int, int, Claims], ...] = ()) -> Policy:
    """A policy of suffixes with one class and one source, made without `combine`."""
    claims = {names.from_text(text): (Decision(0, 0, line, text),) for line, text in enumerate(claimed, start=1)}
    return Policy(
        classes=(Class("a", "core"),),
        sources=(Source("a/core.list", Level.APPS, "a", "core", False),),
        names={name: Claimed(each, each) for name, each in claims.items()},
        networks={4: v4},
    )


# ── round trip ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_an_image_holds_what_the_policy_says() -> None:
    combined = policy.combine(catalogue.apps(FILES), (), EVERYTHING)
    built = Image(image.encode(combined))
    assert (built.classes, built.sources) == (combined.classes, combined.sources)
    assert (len(built), built.networks) == (len(combined), sum(map(len, combined.networks.values())))
    everything = combined.claimed()
    assert set(combined.names) == set(map(names.from_text, ("mail.alipay.com", "alipay.com", "mygw.alipay.com")))
    assert len(everything) == len(combined) == 5
    assert {name: (itself, below) for name, itself, below in built.listed()} == everything
    for name, claimed in everything.items():
        assert built.lookup(name) == claimed.itself
        assert built.lookup(Name(b"\1x" + name)) == claimed.below
    for family in (4, 6):
        assert tuple(built.ranges(family)) == combined.networks[family]


def test_the_first_listed_suffix_decides() -> None:
    built = Image(DATA)
    assert lookup(built, "www.alipay.com") == ["alipay.com", "alipay.com"]
    assert lookup(built, "x.mygw.alipay.com") == ["mygw.alipay.com", "alipay.com", "alipay.com"]
    assert lookup(built, "ok.alipay.com") == ["ok.alipay.com"]
    assert lookup(built, "pay.example.com") == ["=pay.example.com"]
    for asked in ("x.pay.example.com", "example.com", "com", "."):
        assert lookup(built, asked) == []


def test_an_empty_policy_claims_nothing() -> None:
    built = Image(image.encode(policy.combine((), (), EVERYTHING)))
    assert (len(built), built.networks) == (0, 0)
    assert (
        lookup(built, "alipay.com")
        == lookup(built, ".")
        == address(built, "203.0.113.7")
        == address(built, "2001:db8::7")
        == []
    )


def test_a_decision_keeps_class_source_line_and_rule() -> None:
    decision = Image(DATA).lookup(names.from_text("pay.example.com"))[0]
    built = Image(DATA)
    assert built.classes[decision.class_] == Class("alipay", "payment")
    assert built.sources[decision.source] == Source("alipay/payment.list", Level.APPS, "alipay", "payment", False)
    assert (decision.line, decision.rule) == (3, "=pay.example.com")


def test_rules_in_other_scripts_survive() -> None:
    files = {"alipay/payment.list": ["支付宝.中国", "=支付宝.example"]}
    built = Image(image.encode(policy.combine(catalogue.apps(files), (), EVERYTHING)))
    assert lookup(built, "www.xn--bnq242a7nh.xn--fiqs8s") == ["支付宝.中国"]
    assert lookup(built, "xn--bnq242a7nh.example") == ["=支付宝.example"]


def test_the_same_policy_gives_the_same_bytes() -> None:
    assert build() == DATA
    turned = one_class("a.example", "b.example", "c.example")
    again = Policy(turned.classes, turned.sources, dict(reversed(list(turned.names.items()))), turned.networks)
    assert image.encode(again) == image.encode(turned)


def test_the_digest_is_the_images_own() -> None:
    assert Image(DATA).digest == Image(memoryview(DATA)).digest
    assert Image(DATA).digest != Image(image.encode(one_class("a.example"))).digest


def test_an_image_is_read_from_a_read_only_map(tmp_path: Path) -> None:
    (tmp_path / "policy.img").write_bytes(DATA)
    with (tmp_path / "policy.img").open("rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as mapped:
        built = Image(memoryview(mapped))
        assert lookup(built, "x.alipay.com") == ["alipay.com", "alipay.com"]
        del built


# ── the table ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def wanting(home: int, homes: int, number: int) -> list[str]:
    """Names that all want the same slot of a table."""
    found: list[str] = []
    i = 0
    while len(found) < number:
        text = f"n{i}.example"
        if crc32(names.from_text(text)) * homes >> 32 == home:
            found.append(text)
        i += 1
    return found


@pytest.mark.parametrize("home", [0, 7, 65])
def test_names_with_one_home_are_distinguished(home: int) -> None:
    """Those that want the last one have the slots behind it."""
    texts = wanting(home, 66, 60)
    built = Image(image.encode(one_class(*texts[:50])))
    for text in texts[:50]:
        assert lookup(built, text) == lookup(built, f"www.{text}") == [text]
    for text in texts[50:]:
        assert lookup(built, text) == []


def test_names_with_equal_hashes_are_distinguished() -> None:
    seen: dict[int, str] = {}
    pairs = []
    for i in range(400_000):
        text = f"{hashlib.md5(b'%d' % i).hexdigest()[:12]}.example"
        other = seen.setdefault(crc32(names.from_text(text)), text)
        if other != text:
            pairs.append((other, text))
    assert len(pairs) > 5
    for one, two in pairs:
        built = Image(image.encode(one_class(one)))
        assert (lookup(built, one), lookup(built, two)) == ([one], [])
        built = Image(image.encode(one_class(one, two)))
        assert (lookup(built, one), lookup(built, two)) == ([one], [two])


def test_a_table_without_a_free_slot_at_its_end_is_refused() -> None:
    """A search would not end."""
    start, end = (image._HEADER.unpack_from(DATA)[4 + image._FIELDS.index(field)] for field in ("slots", "blob"))
    body = bytearray(DATA)
    body[end - 12] = 1
    assert start < end
    digest = hashlib.sha256(body[48:]).digest()
    with pytest.raises(ImageError, match="last slot"):
        Image(bytes(body[:16] + digest + body[48:]))


@pytest.mark.parametrize("count", [1, 3, 4, 5, 7, 8, 9, 1000])
def test_a_table_of_any_size_has_free_slots(count: int) -> None:
    texts = [f"n{i}.example" for i in range(count)]
    built = Image(image.encode(one_class(*texts)))
    assert len(built) == count
    assert all(lookup(built, text) == [text] for text in texts)
    assert lookup(built, "nobody.example") == []


def test_the_longest_name_with_the_most_labels_is_asked_in_127_steps() -> None:
    built = Image(DATA)
    longest = Name(b"\1a" * 127 + b"\0")
    assert len(longest) == 255
    assert built.lookup(longest) == ()
    assert rules(built.lookup(Name(b"\1a" * 121 + names.from_text("alipay.com")))) == ["alipay.com", "alipay.com"]


def test_more_claims_than_the_memo_holds_are_found_all_the_same() -> None:
    texts = [f"n{i}.example" for i in range(image.MEMO + 500)]
    built = Image(image.encode(one_class(*texts)))
    for _ in range(2):
        assert [lookup(built, text) for text in texts] == [[text] for text in texts]
        assert len(built._memo) <= image.MEMO


# ── addresses ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_range_that_holds_an_address_decides() -> None:
    built = Image(DATA)
    assert address(built, "203.0.112.255") == address(built, "203.0.114.0") == []
    assert address(built, "203.0.113.0") == ["203.0.113.0/24"]
    assert address(built, "203.0.113.7") == ["203.0.113.7"]
    assert address(built, "203.0.113.255") == ["203.0.113.128/25", "203.0.113.0/24"]
    assert address(built, "2001:db8::7") == ["2001:db8::/32"]
    assert address(built, "2001:db8:7::7") == ["2001:db8:7::/48", "2001:db8::/32"]
    assert address(built, "2001:db9::") == []


@pytest.mark.parametrize(
    "text",
    [
        "::ffff:203.0.113.7", "64:ff9b::203.0.113.7", "64:ff9b:1::203.0.113.7", "64:ff9b:1:abcd:ef::203.0.113.7",
        "2002:cb00:7107::1",
    ],
)  # fmt: skip
def test_an_ipv6_form_that_carries_a_listed_ipv4_address_is_listed(text: str) -> None:
    assert address(Image(DATA), text) == ["203.0.113.7"]


@pytest.mark.parametrize(
    "text", ["::203.0.113.7", "64:ff9b:2::203.0.113.7", "::fffe:203.0.113.7", "2003:cb00:7107::1", "64:ff9b::203.0.112.7"]
)
def test_other_ipv6_addresses_are_not_taken_for_such_forms(text: str) -> None:
    assert address(Image(DATA), text) == []


@pytest.mark.parametrize(
    ("text", "inner"),
    [
        ("::ffff:192.0.2.1", "192.0.2.1"), ("64:ff9b::192.0.2.1", "192.0.2.1"), ("64:ff9b:1::192.0.2.1", "192.0.2.1"),
        ("2002:c000:201::5", "192.0.2.1"), ("2001:db8::192.0.2.1", None), ("::1", None),
    ],
)  # fmt: skip
def test_the_address_inside(text: str, inner: str | None) -> None:
    found = image.embedded(ipaddress.ip_address(text).packed)
    assert (str(ipaddress.ip_address(found)) if found else None) == inner


def test_a_form_claimed_as_itself_and_as_the_address_it_carries_has_both_claims() -> None:
    files = {
        "alipay/payment.list": ["203.0.113.0/24"],
        "qq/core.list": ["2002:cb00:7100::/40"],
        "qq/payment.list": ["203.0.113.7"],
    }
    built = Image(image.encode(policy.combine(catalogue.apps(files), (), EVERYTHING)))
    assert address(built, "2002:cb00:7107::1") == ["2002:cb00:7100::/40", "203.0.113.7", "203.0.113.0/24"]
    twice = {"qq/core.list": ["2002:cb00:7100::/40", "203.0.113.7"]}
    built = Image(image.encode(policy.combine(catalogue.apps(twice), (), EVERYTHING)))
    assert address(built, "2002:cb00:7107::1") == ["2002:cb00:7100::/40"]


@pytest.mark.parametrize("allowed", ["203.0.113.7", "2002:cb00:7107::/48"])
def test_of_the_two_forms_the_earlier_level_decides(allowed: str) -> None:
    own = (local(Level.ALLOW, allowed), local(Level.BLOCK, "203.0.113.0/24", "2002:cb00:7100::/40"))
    built = Image(image.encode(policy.combine((), own, EVERYTHING)))
    assert address(built, "2002:cb00:7107::1") == [allowed]
    assert address(built, "2002:cb00:7108::1") == ["2002:cb00:7100::/40"]


# ── damage ───────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_every_octet_is_guarded() -> None:
    """One flipped bit anywhere: the header, its zero, the checksum, each section and the padding between them."""
    for at in range(len(DATA)):
        damaged = bytearray(DATA)
        damaged[at] ^= 1 << at % 8
        with pytest.raises(ImageError):
            Image(bytes(damaged))


@pytest.mark.parametrize("size", [0, 1, 7, 8, 100, 143, 144, len(DATA) // 2, len(DATA) - 8, len(DATA) - 1])
def test_a_truncated_image_is_refused(size: int) -> None:
    with pytest.raises(ImageError):
        Image(DATA[:size])


def test_an_image_with_something_behind_it_is_refused() -> None:
    with pytest.raises(ImageError, match="its header says"):
        Image(DATA + bytes(8))


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "cut short"),
        (b"\x7fELF" + bytes(500), "not a policy image"),
        (b"EMBARGO\n\1\0\0\0" + DATA[12:], "version 1.0, this program reads version 2.0"),
        (b"EMBARGO\n\2\0\0\0\7\0\0\0" + DATA[16:], "version 2.7, this program reads version 2.0"),
    ],
)
def test_something_else_is_refused_with_the_reason(data: bytes, said: str) -> None:
    with pytest.raises(ImageError, match=said):
        Image(data)


def forged(numbers: dict[str, int], strings: bytes | None = None) -> bytes:
    """An image whose header says something else, with the right checksum."""
    _, _, _, _, *fields = image._HEADER.unpack_from(DATA)
    at = dict(zip(image._FIELDS, fields, strict=True)) | numbers
    body = bytearray(DATA[image._HEADER.size :])
    if strings is not None:
        start, end = fields[0] - image._HEADER.size, fields[1] - image._HEADER.size
        body[start:end] = strings.ljust(end - start, b"\0")
    packed = image._NUMBERS.pack(*at.values())
    digest = hashlib.sha256(packed + body).digest()
    return image._HEADER.pack(image.MAGIC, image.VERSION, 0, digest, *at.values()) + bytes(body)


def test_a_forgery_that_says_the_same_is_an_image() -> None:
    assert forged({}) == DATA


@pytest.mark.parametrize("field", image._FIELDS)
@pytest.mark.parametrize("value", [0, 1, 3, len(DATA), 1 << 40, (1 << 64) - 1])
def test_a_checksummed_image_whose_header_contradicts_it_is_refused(field: str, value: int) -> None:
    data = forged({field: value})
    if data == DATA:
        return
    with pytest.raises(ImageError):
        Image(data)


@pytest.mark.parametrize(
    "strings", [b"{}", b"[]", b"null", b"{", b'{"classes":[[]],"sources":[]}', b'{"classes":[],"sources":[[]]}']
)
def test_strings_that_are_not_what_they_must_be_are_an_image_error(strings: bytes) -> None:
    with pytest.raises(ImageError, match="contradicts itself"):
        Image(forged({}, strings))
