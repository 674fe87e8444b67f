"""Lists: what an administrator may write, and what he is problem_texts when he wrote something else."""

from dataclasses import replace
from typing import Any

import pytest

from embargo import names
from embargo.daemon.compile import compiler
from embargo.errors import ListError
from embargo.lists import lists
from embargo.lists.lists import Guard
from embargo.lists.policy import Entry, EntryKind, Level, List, Network, Source

PAYMENT = Source("alipay/payment.list", Level.APPS, "alipay", "payment", False)
ALLOW = Source("allow.list", Level.ALLOW, "local", "allow", False)
PROTECTED = [
    ("192.0.2.53", "the upstream resolver's"),
    ("198.51.100.0/24", "on the LAN"),
    ("2001:db8:53::53", "the upstream resolver's"),
]
GUARD = compiler.guard(PROTECTED)  # the public suffix list of the daemon


def parse(data: bytes | str, *, source: Source = PAYMENT, guard: Guard = GUARD) -> List:
    octets = data.encode() if isinstance(data, str) else data
    return lists.parse(octets, file="payment.list", source=source, guard=guard)


def entry(text: str) -> Entry:
    found = parse(text)
    assert not found.problems, found.problems
    assert len(found.entries) == 1
    return found.entries[0]


def problem_texts(data: bytes | str, **how: Any) -> list[str]:
    """The problems of a list, as `embargo check` prints them."""
    return list(map(str, parse(data, **how).problems))


def refusal(data: bytes) -> str:
    with pytest.raises(ListError) as caught:
        parse(data)
    return str(caught.value)


# ── what a line may be ───────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("text", "kind", "exception", "name"),
    [
        ("alipay.com", EntryKind.SUFFIX, False, "alipay.com"),
        ("AliPay.Com.", EntryKind.SUFFIX, False, "alipay.com"),
        ("  alipay.com\t", EntryKind.SUFFIX, False, "alipay.com"),
        ("\u3000alipay.com\xa0", EntryKind.SUFFIX, False, "alipay.com"),
        ("=pay.example.com", EntryKind.EXACT, False, "pay.example.com"),
        ("= pay.example.com", EntryKind.EXACT, False, "pay.example.com"),
        ("!mail.example.com", EntryKind.SUFFIX, True, "mail.example.com"),
        ("! mail.example.com", EntryKind.SUFFIX, True, "mail.example.com"),
        ("支付宝.中国", EntryKind.SUFFIX, False, "xn--bnq242a7nh.xn--fiqs8s"),
        ("alipay\u3002com", EntryKind.SUFFIX, False, "alipay.com"),
        ("\uff41\uff4c\uff49\uff50\uff41\uff59\uff0ecom", EntryKind.SUFFIX, False, "alipay.com"),
        (r"a\032b\035.example.com", EntryKind.SUFFIX, False, r"a\032b\035.example.com"),
        (r"a\.b.example.com", EntryKind.SUFFIX, False, r"a\.b.example.com"),
        (r"\042.example.com", EntryKind.SUFFIX, False, "*.example.com"),
        ("_dns.example.com", EntryKind.SUFFIX, False, "_dns.example.com"),
        ("4399.com", EntryKind.SUFFIX, False, "4399.com"),
        ("7.2.0.192.in-addr.arpa", EntryKind.SUFFIX, False, "7.2.0.192.in-addr.arpa"),
        ("!com", EntryKind.SUFFIX, True, "com"),
    ],
)
def test_a_name(text: str, kind: EntryKind, exception: bool, name: str) -> None:
    found = entry(text)
    assert (found.kind, found.exception, found.name, found.network) == (kind, exception, names.from_text(name), None)


@pytest.mark.parametrize(
    ("text", "exception", "network"),
    [
        ("203.0.113.7", False, Network(4, 0xCB007107, 0xCB007107)),
        ("203.0.113.7/32", False, Network(4, 0xCB007107, 0xCB007107)),
        ("203.0.113.0/24", False, Network(4, 0xCB007100, 0xCB0071FF)),
        ("!203.0.113.5", True, Network(4, 0xCB007105, 0xCB007105)),
        ("! 203.0.113.0/28", True, Network(4, 0xCB007100, 0xCB00710F)),
        ("2001:db8:8000::/33", False, Network(6, 0x20010DB88000 << 80, (0x20010DB9 << 96) - 1)),
        ("2001:DB8:0::7", False, Network(6, (0x20010DB8 << 96) + 7, (0x20010DB8 << 96) + 7)),
        ("!2001:db8::7/128", True, Network(6, (0x20010DB8 << 96) + 7, (0x20010DB8 << 96) + 7)),
        ("!0.0.0.0/0", True, Network(4, 0, 0xFFFFFFFF)),
    ],
)
def test_an_address_or_network(text: str, exception: bool, network: Network) -> None:
    found = entry(text)
    assert (found.kind, found.exception, found.network) == (EntryKind.NETWORK, exception, network)


def test_comments_are_evidence_and_whole_line_comments_are_nothing() -> None:
    found = parse("# a list\n\n  # indented\nalipay.com  # seen in 10.8.2, alipay.apk\n203.0.113.7# close by\n=a.qq.com #\n")
    assert [(e.line, e.text, e.evidence) for e in found.entries] == [
        (4, "alipay.com", "seen in 10.8.2, alipay.apk"), (5, "203.0.113.7", "close by"), (6, "=a.qq.com", ""),
    ]  # fmt: skip
    assert found.problems == ()


def test_evidence_holds_no_control_character() -> None:
    assert parse("alipay.com # a\x1b[31mb\u202ec").entries[0].evidence == "a[31mbc"


def test_the_list_knows_its_file_and_source() -> None:
    found = parse("")
    assert (found.file, found.source, found.entries, found.problems) == ("payment.list", PAYMENT, (), ())


# ── lines and their numbers ──────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "data",
    [
        b"alipay.com\nbad name\nqq.com",
        b"alipay.com\nbad name\nqq.com\n",
        b"alipay.com\r\nbad name\r\nqq.com\r\n",
        b"alipay.com\r\nbad name\nqq.com",
        b"alipay.com\rbad name\rqq.com\r",
        b"alipay.com\r\r\nbad name\r\r\nqq.com\r\r\n",
        b"\xef\xbb\xbfalipay.com\nbad name\nqq.com\n",
    ],
    ids=["no end", "lf", "crlf", "mixed", "cr", "crcrlf", "bom"],
)
def test_lines_are_numbered_as_an_editor_shows_them(data: bytes) -> None:
    found = parse(data)
    assert [(e.line, e.text) for e in found.entries] == [(1, "alipay.com"), (3, "qq.com")]
    assert [p.line for p in found.problems] == [2]


@pytest.mark.parametrize("character", ["\x0b", "\x0c", "\x1c", "\x1d", "\x1e", "\x85", "\u2028", "\u2029"])
def test_characters_that_only_python_takes_for_line_ends_end_no_line(character: str) -> None:
    found = parse(f"# one{character}alipay.com\nqq.com{character}vmate.com\nbad/\n{character}wps.com\n")
    assert [(e.line, e.text) for e in found.entries] == [(4, "wps.com")]
    assert [(p.line, p.message.partition('" ')[2]) for p in found.problems] == [
        (2, "is more than one word"), (3, "is not a name, address or network"),
    ]  # fmt: skip


def test_a_carriage_return_within_a_line_is_not_passed_over() -> None:
    shown = '"# note\N{REPLACEMENT CHARACTER}alipay.com"'
    assert problem_texts("# note\ralipay.com\nqq.com\n") == [
        f"payment.list:1: {shown} has a carriage return in its middle, end every line with LF or CRLF"
    ]


def test_a_huge_line_costs_itself_alone() -> None:
    found = parse(b"alipay.com\n" + b"a" * 5000 + b"\nqq.com # " + b"b" * 5000 + b"\nwps.com")
    assert [e.text for e in found.entries] == ["alipay.com", "wps.com"]
    assert list(map(str, found.problems)) == [
        "payment.list:2: the line has 5000 octets, a line has at most 4096",
        "payment.list:3: the line has 5009 octets, a line has at most 4096",
    ]
    assert len(parse(b"#" + b"a" * 4095).problems) == 0


def test_a_million_bad_lines_are_counted_and_a_thousand_reported() -> None:
    problems = problem_texts(b"a b\n" * 1_200)
    assert len(problems) == 1001
    assert problems[-1] == (
        "payment.list: 200 more lines cannot be used, "
        "is this a list of another format? An entry is one name, address or network"
    )


# ── bad lines, each with what would be right ─────────────────────────────────────────────────────────────────────────────

EMPTY = "it has an empty label: one dot stands between two labels, none before the first"
ONE = "write one name, address or network per line, comments after #"
ALONE = "write the name alone"
OTHERS = "write the names that are meant"
CUT = "blocking them would cut the network itself; remove the line"
CARRIED = "write the IPv4 address: it holds for the IPv6 forms that carry it too"
FORM = "write it as in 203.0.113.7 or 2001:db8::7"
FORMS = "write it as in 203.0.113.7, 203.0.113.0/24 or 2001:db8::/32"


@pytest.mark.parametrize(
    ("line", "message", "hint"),
    [
        # other formats
        ("https://alipay.com/pay", "is a URL", "write the name alone, without scheme and path"),
        ("alipay.com/pay", "is not a name, address or network", "write the name alone, without a path"),
        ("alipay.com:443", "has a port", "write the name or address alone: a block holds for every port"),
        ("203.0.113.7:443", "has a port", "write the name or address alone: a block holds for every port"),
        ("[2001:db8::7]:443", "has a port", "write the name or address alone: a block holds for every port"),
        ("*.alipay.com", "has a wildcard", "a name already covers every name below it; write it without '*.'"),
        ("pay*.alipay.com", "has a wildcard", "a name already covers every name below it; write it without '*.'"),
        ("||alipay.com^", "is an adblock rule", "write the name alone; an exception is !name"),
        ("@@||alipay.com^", "is an adblock rule", "write the name alone; an exception is !name"),
        ("||alipay.com", "is an adblock rule", "write the name alone; an exception is !name"),
        ("@@||alipay.com", "is an adblock rule", "write the name alone; an exception is !name"),
        ("alipay.com$third-party", "is an adblock rule", "write the name alone; an exception is !name"),
        ("alipay.com##.banner", "is an adblock rule", ALONE),
        ("alipay.com#@#.banner", "is an adblock rule", ALONE),
        ("! Title: some list", "is more than one word", ONE),
        ("[Adblock Plus 2.0]", "is more than one word", ONE),
        ("0.0.0.0 alipay.com", "is more than one word", ONE),
        ("0.0.0.0\talipay.com", "is more than one word", ONE),
        ("alipay.com CNAME .", "is more than one word", ONE),
        ("address=/alipay.com/", "is not a name, address or network", "write the name alone, without a path"),
        ('local-zone: "alipay.com" refuse', "is more than one word", ONE),
        ("<a>", "has the character <", r"remove it, or write it as \060 where a name really has it"),
        ("alipay.com,", "has the character ,", r"remove it, or write it as \044 where a name really has it"),
        ('"alipay.com"', 'has the character "', r"remove it, or write it as \034 where a name really has it"),
        ("me@alipay.com", "has the character @", r"remove it, or write it as \064 where a name really has it"),
        ("a=b.alipay.com", "has the character =", r"remove it, or write it as \061 where a name really has it"),
        # signs
        ("!", "has no name or address", "write !name or !address"),
        ("=", "has no name or address", "write a name"),
        ("!=alipay.com", 'begins with "!="', "write !name or =name; !name holds for the name and every name below it"),
        ("!!alipay.com", 'begins with "!!"', "write !name or =name; !name holds for the name and every name below it"),
        ("=!alipay.com", 'begins with "=!"', "write !name or =name; !name holds for the name and every name below it"),
        ("=203.0.113.7", "is not an address or network", FORMS),
        # names
        (".", "is the root of all names", "write the name that is meant"),
        ("\u3002", "is the root of all names", "write the name that is meant"),
        (".alipay.com", "is not a domain name", EMPTY),
        ("alipay..com", "is not a domain name", EMPTY),
        ("a" * 64 + ".com", "is not a domain name", "a label has 64 octets, at most 63 are allowed"),
        ("aa." * 84 + "com", "is not a domain name", "it has 257 octets, at most 255 are allowed"),
        (r"alipay\999.com", "is not a domain name", r"\999 is not an octet"),
        ("alipay.com\\", "has the character \\", r"remove it, or write it as \092 where a name really has it"),
        ("com", "is a public suffix: names below it belong to others", OTHERS),
        ("=com", "is a public suffix: names below it belong to others", OTHERS),
        ("COM.", "is a public suffix: names below it belong to others", OTHERS),
        ("com.cn", "is a public suffix: names below it belong to others", OTHERS),
        ("中国", "is a public suffix: names below it belong to others", OTHERS),
        ("github.io", "is a public suffix: names below it belong to others", OTHERS),
        # addresses
        ("203.0.113", "is not an address or network", FORMS),
        ("203.0.113.7.9", "is not an address or network", FORMS),
        ("\uff12\uff10\uff13.0.113.7", "is not an address or network", FORMS),
        ("203.0.113.1-203.0.113.9", "is not an address or network", FORMS),
        ("203.0.113.256", "is not an IPv4 address", FORM),
        ("203.0.113.007", "is not an IPv4 address", FORM),
        ("2001:db8:::7", "is not an IPv6 address", FORM),
        ("2001:db8::7%eth0", "is not an IPv6 address", FORM),
        ("[2001:db8::7]", "is not an IPv6 address", FORM),
        ("203.0.113/24", "is not a network", "write all four octets, as in 203.0.113.0/24"),
        ("203.0.113.0/", "has no valid prefix length", "write /0 to /32"),
        ("203.0.113.0/33", "has no valid prefix length", "write /0 to /32"),
        ("203.0.113.0/-1", "has no valid prefix length", "write /0 to /32"),
        ("203.0.113.0/²4", "has no valid prefix length", "write /0 to /32"),
        ("203.0.113.0/255.255.255.0", "has no valid prefix length", "write /0 to /32"),
        ("2001:db8::/129", "has no valid prefix length", "write /0 to /128"),
        ("203.0.113.7/24", "has host bits set", "write 203.0.113.0/24 or the address alone"),
        ("!203.0.113.7/24", "has host bits set", "write 203.0.113.0/24 or the address alone"),
        ("2001:db8::7/32", "has host bits set", "write 2001:db8::/32 or the address alone"),
        ("0.0.0.0/0", "is too wide a network", "/8 is the widest for IPv4"),
        ("0.0.0.0/1", "is too wide a network", "/8 is the widest for IPv4"),
        ("202.0.0.0/7", "is too wide a network", "/8 is the widest for IPv4"),
        ("::/0", "is too wide a network", "/19 is the widest for IPv6"),
        ("2000::/3", "is too wide a network", "/19 is the widest for IPv6"),
        # the network itself
        ("0.0.0.0", "covers addresses that are unspecified", CUT),
        ("10.0.0.0/8", "covers addresses that are private", CUT),
        ("192.168.1.1", "covers addresses that are private", CUT),
        ("172.31.255.255", "covers addresses that are private", CUT),
        ("100.64.0.0/10", "covers addresses that are shared by carriers", CUT),
        ("127.0.0.1", "covers addresses that are loopback", CUT),
        ("169.254.169.254", "covers addresses that are link-local", CUT),
        ("192.0.0.8", "covers addresses that are for protocols", CUT),
        ("198.18.0.0/15", "covers addresses that are for benchmarks", CUT),
        ("224.0.0.251", "covers addresses that are multicast", CUT),
        ("255.255.255.255", "covers addresses that are reserved", CUT),
        ("::", "covers addresses that are unspecified or loopback", CUT),
        ("::1", "covers addresses that are unspecified or loopback", CUT),
        ("::ffff:203.0.113.7", "covers addresses that are IPv4-mapped", CARRIED),
        ("64:ff9b::/96", "covers addresses that are NAT64", CARRIED),
        ("64:ff9b:1::cb00:7107", "covers addresses that are NAT64", CARRIED),
        ("fd00::/32", "covers addresses that are private", CUT),
        ("fe80::1", "covers addresses that are link-local", CUT),
        ("fec0::1", "covers addresses that are private", CUT),
        ("ff02::fb", "covers addresses that are multicast", CUT),
        ("192.0.2.53", "covers addresses that are the upstream resolver's", CUT),
        ("192.0.2.0/24", "covers addresses that are the upstream resolver's", CUT),
        ("198.51.100.7", "covers addresses that are on the LAN", CUT),
        ("198.51.0.0/16", "covers addresses that are on the LAN", CUT),
        ("2001:db8:53::53", "covers addresses that are the upstream resolver's", CUT),
        ("2001:db8::/32", "covers addresses that are the upstream resolver's", CUT),
    ],
)  # fmt: skip
def test_a_bad_line_is_reported_with_its_place_and_what_would_be_right(line: str, message: str, hint: str) -> None:
    found = parse(f"alipay.com\n{line}\nqq.com\n")
    shown = '"' + (line if len(line) <= 80 else line[:79] + "…").replace("\t", "\N{REPLACEMENT CHARACTER}") + '"'
    assert list(map(str, found.problems)) == [f"payment.list:2: {shown} {message}, {hint}"]
    assert [(e.line, e.text) for e in found.entries] == [(1, "alipay.com"), (3, "qq.com")]


@pytest.mark.parametrize("code", [0x01, 0x1B, 0x7F, 0x9B, 0x200B, 0x202E, 0xFEFF])
def test_an_invisible_character_is_named(code: int) -> None:
    assert problem_texts(f"ali{chr(code)}pay.com") == [
        f'payment.list:1: "ali\N{REPLACEMENT CHARACTER}pay.com" has the invisible character U+{code:04X}, '
        r"remove it; where a name really has it, write its octets as \DDD or the label as xn--…"
    ]


def test_no_message_holds_a_control_character_or_a_long_line() -> None:
    (problem,) = problem_texts("\x1b[31m" * 800 + "x y")
    assert problem.isprintable()
    assert len(problem) < 300


def test_every_bad_line_is_reported_at_once() -> None:
    assert [problem.line for problem in parse("com\n\n10.0.0.1\nalipay.com\n0.0.0.0/0\n").problems] == [1, 3, 5]


def test_exceptions_and_the_allow_list_are_bound_by_syntax_only() -> None:
    text = "com\n0.0.0.0/0\n10.0.0.0/8\n192.0.2.53\n::/0\n"
    assert len(parse(text, source=ALLOW).entries) == 5
    assert len(parse("".join(f"!{line}\n" for line in text.split())).entries) == 5
    assert problem_texts("203.0.113.7/24", source=ALLOW) == [
        'payment.list:1: "203.0.113.7/24" has host bits set, write 203.0.113.0/24 or the address alone'
    ]


def test_the_local_block_list_is_guarded_like_an_apps() -> None:
    block = Source("block.list", Level.BLOCK, "local", "block", False)
    assert [problem.line for problem in parse("com\n10.0.0.1\nalipay.com\n", source=block).problems] == [1, 2]


def test_a_public_suffix_that_one_registrant_has_alone_may_be_an_entry() -> None:
    guard = replace(GUARD, single_registrant=frozenset({names.from_text("weibo")}))
    assert [e.text for e in parse("weibo\n", guard=guard).entries] == ["weibo"]
    assert problem_texts("baidu\n", guard=guard) == [
        'payment.list:1: "baidu" is a public suffix: names below it belong to others, write the names that are meant'
    ]


@pytest.mark.parametrize("text", ["lan", "wpad", "printer", "internal", "localdomain"])
def test_a_name_of_the_lan_may_be_an_entry(text: str) -> None:
    """No registry has it, so nobody else has a name below it."""
    assert [e.text for e in parse(f"{text}\n").entries] == [text]


# ── files that cannot be a list ──────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"alipay.com\nqq\0.com\n", "payment.list:2: the file is binary, a list is UTF-8 text, one entry per line"),
        (b"\x7fELF\2\1\1\0", "payment.list:1: the file is binary, a list is UTF-8 text, one entry per line"),
        ("alipay.com\n".encode("utf-16"), "payment.list:1: the file is UTF-16, save it as UTF-8"),
        ("\ufeffalipay.com\n".encode("utf-16-be"), "payment.list:1: the file is UTF-16, save it as UTF-8"),
        ("alipay.com\n".encode("utf-16-le"), "payment.list:1: the file is binary, a list is UTF-8 text, one entry per line"),
        ("alipay.com\n".encode("utf-32"), "payment.list:1: the file is UTF-16, save it as UTF-8"),
        ("qq.com\nqq.cn # 支付\n".encode("gb18030"), "payment.list:2: octet 0xb8 is not UTF-8, save the file as UTF-8"),
        ("qq.com\r\rwps.com # é\r".encode("latin-1"), "payment.list:3: octet 0xe9 is not UTF-8, save the file as UTF-8"),
        (b"alipay.com\n\xed\xa0\x80.com", "payment.list:2: octet 0xed is not UTF-8, save the file as UTF-8"),
        (b"\x1f\x8b\x08\x08", "payment.list:1: octet 0x8b is not UTF-8, save the file as UTF-8"),
        (b"<!DOCTYPE html>\n<html>", "payment.list:1: the file is a web page or XML, a list is UTF-8 text, one entry per line"),
        (
            b"\xef\xbb\xbf\r\n  <html>",
            "payment.list:1: the file is a web page or XML, a list is UTF-8 text, one entry per line",
        ),
    ],
    ids=[
        "nul",
        "elf",
        "utf-16",
        "utf-16be",
        "utf-16-without-bom",
        "utf-32",
        "gb18030",
        "latin-1",
        "surrogate",
        "gzip",
        "html",
        "bom-html",
    ],
)
def test_a_file_that_cannot_be_a_list_is_refused_whole(data: bytes, said: str) -> None:
    assert refusal(data) == said


def test_a_file_that_is_too_large_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lists, "MAX_FILE", 100)
    assert len(parse(b"#" * 100).entries) == 0
    assert refusal(b"#" * 101) == "payment.list: the file has 101 octets, a list has at most 100"


# ── single entries and networks ──────────────────────────────────────────────────────────────────────────────────────────


def test_an_entry_alone_says_what_is_wrong_with_it() -> None:
    assert lists.parse_entry("=pay.example.com").kind is EntryKind.EXACT
    for text in ("alipay.com\nqq.com", "! \nqq.com", "alipay.com # why", "a#b.com", ""):
        with pytest.raises(ValueError, match=r'^"'):
            lists.parse_entry(text)
    with pytest.raises(ValueError, match=r'^"http://x" is a URL, write the name alone, without scheme and path$'):
        lists.parse_entry("http://x")


def test_a_network_of_the_configuration() -> None:
    assert lists.network_from_text("203.0.113.0/24") == Network(4, 0xCB007100, 0xCB0071FF)
    with pytest.raises(ValueError, match=r'^"example.com" is not an address or network, write it as in 203.0.113.0/24$'):
        lists.network_from_text("example.com")
    with pytest.raises(ValueError, match=r"^.203.0.113.7/24. has host bits set, write 203.0.113.0/24 or the address alone$"):
        lists.network_from_text("203.0.113.7/24")
