"""Exports: golden files for their text, and what the properties and the real resolvers do not reach."""

import re

import pytest

from embargo import names
from embargo.export import draft, render, rpz
from embargo.export.effective import Treatment, Verdict
from embargo.export.formats import FORMATS
from embargo.export.render import Export
from embargo.lists import lists
from golden import exports as golden


def rendered(form: str, text: str = "", *, serial: int | None = None, **files: list[str]) -> Export:
    """`files`: a function of alipay's and its lines."""
    lines = {f"alipay/{function}.list": entries for function, entries in files.items()}
    return render.render(golden.made(text, lines, allow=(), block=()), form, "1", serial)


def body(text: str) -> list[str]:
    return [line for line in text.splitlines() if not line.startswith(("#", ";", "!"))]


@pytest.mark.parametrize("case", golden.CASES)
def test_the_text_equals_the_golden_file(case: str) -> None:
    assert golden.rendered(case) == (golden.HERE / case).read_text(), "as it should be? python -m tests.golden.exports"


def test_every_golden_file_has_its_case() -> None:
    assert {path.name for path in golden.HERE.iterdir()} == set(golden.CASES)


@pytest.mark.parametrize("form", FORMATS)
def test_the_header_has_version_digest_counts_and_what_is_not_exported(form: str) -> None:
    made = render.render(golden.made(golden.ALL), form, "4.5.6")
    head = made.text.splitlines()
    comment = FORMATS[form].comment
    assert head[0] == f"{comment} Policy of Embargo 4.5.6, written by `embargo export {form}`"
    assert re.fullmatch(rf"{comment} digest [0-9a-f]{{16}}: \d+ names blocked, \d+ names excepted, \d+ networks .*", head[1])
    for text in (*made.omitted, *FORMATS[form].lacks):
        assert f"{comment} not exported: {text}" in head


def test_the_digest_depends_on_the_entries_only() -> None:
    def digest(made: Export) -> str:
        return made.text.splitlines()[1].split(":")[0]

    one = digest(rendered("dnsmasq", payment=["alipay.example"]))
    assert one == digest(rendered("dnsmasq", payment=["# another comment", "", "alipay.example  # evidence"]))
    assert one != digest(rendered("dnsmasq", payment=["alipay.test"]))


def test_the_serial_of_a_zone_depends_on_its_content_unless_it_is_given() -> None:
    def serial(*entries: str, given: int | None = None) -> str:
        return rendered("rpz", serial=given, payment=list(entries)).text.partition("hostmaster.localhost. ")[2].split()[0]

    assert serial("a.example") == serial("a.example", "# comment")
    assert serial("a.example") != serial("b.example")
    assert serial("a.example", given=7) == "7"
    assert 0 <= int(serial("a.example")) < 1 << 32


@pytest.mark.parametrize("form", [form for form in FORMATS if form not in ("nft", "hosts")])
def test_a_name_that_a_line_above_covers_has_no_line(form: str) -> None:
    several = ["alipay.example", "www.alipay.example", "=pay.alipay.example", "!mail.test"]
    assert body(rendered(form, serial=1, payment=several).text) == body(rendered(form, serial=1, payment=several[:1]).text)


@pytest.mark.parametrize("form", FORMATS)
def test_special_names_are_not_exported(form: str) -> None:
    assert "onion" not in render.render(golden.made(golden.ALL), form, "1").text


def test_names_that_a_zone_would_misread_are_reported() -> None:
    long = ".".join(["a" * 63, "b" * 63, "c" * 63, "d" * 20, "example"])
    made = rendered("rpz", payment=["\\042.wild.example", long, "alipay.example"])
    assert "names with a label *, which a zone reads as a wildcard: \\042.wild.example" in made.omitted
    assert f"names that are too long for a zone: {long}" in made.omitted
    assert "alipay.example CNAME ." in made.text
    assert long not in "\n".join(body(made.text))


@pytest.mark.parametrize("form", ["hosts", "domains", "dnsmasq", "adblock"])
def test_names_that_other_software_would_misread_are_reported(form: str) -> None:
    made = rendered(form, payment=["a\\047b.example", "x\\032y.example", "under_score.example"])
    assert any("characters other" in text and "a\\047b.example" in text and "x\\032y.example" in text for text in made.omitted)
    assert "under_score.example" in made.text
    assert "a/b" not in made.text


def test_names_that_pass_below_a_blocked_one_are_excepted_from_a_list_of_domains() -> None:
    """Found by the property test: the name itself is blocked, those below it are not, and a suffix above blocks them all."""
    made = rendered("domains", payment=["alipay.example", "!a.alipay.example"], telemetry=["=a.alipay.example"])
    assert "\n# a.alipay.example\n" in made.text


def test_every_octet_of_a_name_is_the_same_after_escaping() -> None:
    name = names.from_text("".join(f"\\{octet:03d}" for octet in range(40, 100)) + ".example")
    assert names.from_text(draft.escaped(name)) == name
    assert not re.search(r"[\"'\s;()@$*/]", draft.escaped(name))


@pytest.mark.parametrize(
    ("first", "length", "owner"),
    [
        ("203.0.113.7", 32, "32.7.113.0.203.rpz-ip"),
        ("2001:db8::", 32, "32.zz.db8.2001.rpz-ip"),
        ("2001:db8:1:1:1:1:0:2", 128, "128.2.0.1.1.1.1.db8.2001.rpz-ip"),
        ("2001:db8:0:0:4:0:0:5", 128, "128.5.0.0.4.zz.db8.2001.rpz-ip"),
        ("2001:db8:0:0:4::", 96, "96.zz.4.0.0.db8.2001.rpz-ip"),
    ],
)
def test_an_address_in_a_zone_is_written_backwards(first: str, length: int, owner: str) -> None:
    network = lists.parse_entry(first).network
    assert network is not None
    assert rpz._address_owner(network.family, network.first, length) == owner


def test_adblock_cannot_block_a_name_inside_two_nested_exceptions() -> None:
    lines = ["x.example", "!a.x.example", "b.a.x.example", "!c.b.a.x.example"]
    assert rendered("adblock", payment=lines).omitted == ()
    made = rendered("adblock", payment=[*lines, "d.c.b.a.x.example"])
    assert made.omitted == ("names blocked inside exceptions inside exceptions: d.c.b.a.x.example",)
    assert "@@||c.b.a.x.example^$important" in made.text


@pytest.mark.parametrize(
    ("itself", "above", "differs"),
    [
        (Verdict.BLOCK, Verdict.PASS, True),
        (Verdict.PASS, Verdict.BLOCK, True),
        (Verdict.ALLOW, Verdict.PASS, True),
        (Verdict.PASS, Verdict.ALLOW, False),
        (Verdict.CANARY, Verdict.BLOCK, True),
        (Verdict.BLOCK, Verdict.BLOCK, False),
    ],
)
def test_which_treatments_need_a_line_of_their_own(itself: Verdict, above: Verdict, differs: bool) -> None:
    assert Treatment(itself).differs(Treatment(above)) is differs


def test_nothing_is_exported_in_audit_mode_and_the_header_says_why() -> None:
    for form in FORMATS:
        made = rendered(form, '[policy]\nmode = "audit"\n', payment=["alipay.example", "203.0.113.0/24"])
        assert made.entries == ()
        assert 'policy.mode = "audit"' in made.omitted[0]


def test_an_nft_export_reports_that_it_does_not_block_httpdns_queries() -> None:
    files = {"bypass/httpdns.list": ["203.0.113.9"], "bypass/doh.list": ["203.0.113.10"]}
    told = "clear-text HTTPDNS queries to addresses that are not listed: httpdns"
    for text, said in (("", True), ('[policy]\nbypass = ["doh"]\n', False), ('[policy]\nmode = "audit"\n', False)):
        made = render.render(golden.made(text, files), "nft", "1")
        assert (told in made.omitted) is said
        assert (f"# not exported: {told}" in made.text.splitlines()) is said
