"""The shipped catalogue: made from the facts alone, free of accidents, and every fact has the verdict it should have."""

import ipaddress
import shutil
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from embargo import names
from embargo.lists import policy
from embargo.lists.image import Image
from embargo.lists.policy import Action, Selection, Switchboard
from support import facts as naive
from support.facts import BLOCKLISTS, THE_EIGHT, Oracle, Row
from tools.catalogue import build, check, facts, page
from tools.catalogue.facts import Exemption, Fact

Compiled = tuple[Image, Switchboard]
ROWS = naive.rows()


@pytest.fixture(scope="module")
def default() -> Compiled:
    return check.compiled(check.load(BLOCKLISTS), Selection())


@pytest.fixture(scope="module")
def everything() -> Compiled:
    return check.compiled(check.load(BLOCKLISTS), check.EVERYTHING)


@pytest.fixture(scope="module")
def all_but_shared() -> Compiled:
    return check.compiled(check.load(BLOCKLISTS), check.ALL_BUT_SHARED)


def rule(compiled: Compiled, subject: str) -> str:
    """The class and rule that block a name or address, empty when nothing does."""
    built, board = compiled
    try:
        claims = built.lookup_address(ipaddress.ip_address(subject).packed)
    except ValueError:
        claims = built.lookup(names.from_text(subject))
    action, decision = board.choose(claims)
    if action is Action.PASS or decision is None:
        return ""
    return f"{built.classes[decision.class_]} {decision.rule}"


def subjects(row: Row) -> Iterator[str]:
    """What a row speaks of: its name and one below it; its address; the ends and the middle of its network."""
    if row["kind"] == "domain":
        yield row["value"]
        yield f"deeper.{row['value']}"
    elif row["kind"] != "asn":
        network = ipaddress.ip_network(row["value"])
        yield from dict.fromkeys((str(network[0]), str(network[network.num_addresses // 2]), str(network[-1])))


# ── made from the facts ────────────────────────────────────────────────────────────────────────────────────────


def test_the_lists_are_what_the_facts_make_and_nobody_edited_them() -> None:
    wanted = build.files(facts.read(), facts.overlay())
    present = {str(path.relative_to(BLOCKLISTS)): path.read_text() for path in BLOCKLISTS.rglob("*") if path.is_file()}
    assert present.keys() == wanted.keys(), "run: python -m tools.catalogue"
    assert present == wanted, "run: python -m tools.catalogue"


def test_the_page_tells_what_the_lists_hold() -> None:
    assert (naive.TOP / "docs/catalogue.md").read_text() == page.page(BLOCKLISTS), "run: python -m tools.catalogue"


def test_every_fact_is_written_in_the_words_of_the_format() -> None:
    words = {
        "kind": {"domain", "ipv4", "ipv6", "cidr4", "cidr6", "asn"}, "match": {"suffix", "exact"},
        "collateral": {"none", "low", "medium", "high"}, "confidence": {"high", "medium", "low"},
        "function": {*policy.FUNCTIONS, *policy.BYPASS_FUNCTIONS},
        "app": {*THE_EIGHT, "wechat", "tiktok", "httpdns", "bypass"},
    }  # fmt: skip
    assert [row for row in ROWS if not row["source"] or any(row[key] not in allowed for key, allowed in words.items())] == []


def test_a_value_stands_once_in_an_app() -> None:
    assert len({(row["app"], row["value"]) for row in ROWS}) == len(ROWS)


def test_a_network_has_the_length_that_its_kind_says() -> None:
    for row in ROWS:
        if row["kind"] not in ("domain", "asn"):
            network = ipaddress.ip_network(row["value"])
            assert row["kind"] == f"{'ipv' if network.num_addresses == 1 else 'cidr'}{network.version}", row


def test_every_row_is_named_by_a_line_or_lies_below_one() -> None:
    """Nothing of the facts is lost: with every class counted, whatever is not context is claimed."""
    built, _ = check.compiled(check.load(BLOCKLISTS), check.EVERYTHING)
    for row in ROWS:
        if row["kind"] == "domain":
            apps = {built.classes[decision.class_].app for decision in built.lookup(names.from_text(row["value"]))}
            assert row["app"].replace("httpdns", "bypass") in apps, row


# ── placement ──────────────────────────────────────────────────────────────────────────────────────────────────


def fact(value: str, function: str = "payment", collateral: str = "none", kind: str = "domain", match: str = "suffix") -> Fact:
    return Fact("alipay", kind, value, match, function, "", collateral, "high", "a source", "")


def kept(*found: Fact, exemptions: tuple[Exemption, ...] = ()) -> list[str]:
    overlay = facts.overlay()
    return [placed.fact.value for placed in build.trim(list(build.place(found, overlay)), exemptions)]


def test_a_name_below_a_suffix_of_the_same_function_is_left_out() -> None:
    assert kept(fact("pay.example"), fact("a.pay.example"), fact("b.a.pay.example", match="exact")) == ["pay.example"]


def test_a_name_below_a_suffix_of_another_function_stays() -> None:
    assert kept(fact("pay.example"), fact("log.pay.example", "telemetry")) == ["pay.example", "log.pay.example"]


def test_a_name_below_a_shared_suffix_stays_and_a_shared_name_below_a_plain_one_too() -> None:
    assert len(kept(fact("pay.example", collateral="medium"), fact("a.pay.example"))) == 2
    assert len(kept(fact("pay.example"), fact("a.pay.example", collateral="medium"))) == 2
    assert len(kept(fact("pay.example", collateral="high"), fact("a.pay.example", collateral="medium"))) == 1


def test_a_name_below_an_exemption_stays() -> None:
    exemption = Exemption("alipay/payment.list", "mail.pay.example", "mail")
    assert len(kept(fact("pay.example"), fact("a.mail.pay.example"), exemptions=(exemption,))) == 2


def test_an_address_within_a_network_of_the_same_function_is_left_out() -> None:
    network = fact("203.0.112.0/22", kind="cidr4", match="exact")
    assert kept(network, fact("203.0.113.7", kind="ipv4", match="exact")) == ["203.0.112.0/22"]
    assert len(kept(network, fact("203.0.113.7", "telemetry", kind="ipv4", match="exact"))) == 2


def test_autonomous_systems_and_whole_clouds_are_never_entries() -> None:
    assert kept(fact("AS64496", kind="asn", match="exact"), fact("203.0.0.0/16", "core", "high", "cidr4", "exact")) == []
    assert any(row["kind"] == "asn" for row in ROWS)


# ── accidents ──────────────────────────────────────────────────────────────────────────────────────────────────


def test_nothing_is_wrong_with_the_catalogue() -> None:
    assert check.problems(BLOCKLISTS) == []


ACCIDENTS = {
    "a top-level domain": ("alipay/payment.list", "com  # x", "is a public suffix"),
    "a public suffix": ("alipay/payment.list", "com.cn  # x", "is a public suffix"),
    "a single registrant's, of another app": ("qq/payment.list", "alipay  # x", "is a public suffix"),
    "a neighbour": ("qq-wallet/payment.list", "mail.qq.com  # x", '"mail.qq.com" blocks mail.qq.com'),
    "a name that is also exempt": ("qq/payment.list", "mail.qq.com  # x", "stands in qq twice"),
    "the parent of another app's neighbour": ("shareit/ads.list", "aliyun.com  # x", "which is a neighbour of alipay"),
    "a private network": ("alipay/payment.list", "10.1.0.0/16  # x", "that are private"),
    "a documentation address": ("alipay/payment.list", "192.0.2.7  # x", "assigned to nobody"),
    "a documentation network": ("alipay/payment.list", "2001:db8::/32  # x", "assigned to nobody"),
    "too wide a network": ("alipay/payment.list", "96.0.0.0/6  # x", "too wide"),
    "everything": ("alipay/payment.list", "0.0.0.0/0  # x", "too wide"),
    "host bits": ("alipay/payment.list", "110.75.143.65/24  # x", "host bits"),
    "capitals in an address": ("alipay/payment.list", "2400:B200:1::1  # x", "write 2400:b200:1::1"),
    "the long form of an address": ("alipay/payment.list", "2400:b200:1:0:0:0:0:1  # x", "write 2400:b200:1::1"),
    "an address as a network": ("alipay/payment.list", "47.1.2.3/32  # x", "write 47.1.2.3"),
    "capitals in a name": ("alipay/payment.list", "Pay.antpay.cn  # x", "write pay.antpay.cn"),
    "a final dot": ("alipay/payment.list", "antpay.cn.  # x", "write antpay.cn"),
    "twice in a list": ("alipay/payment.list", "alipay.com  # x", "stands in alipay twice"),
    "in two functions": ("alipay/telemetry.list", "alipay.com  # x", "stands in alipay twice"),
    "shared and not shared": ("alipay/payment.shared.list", "alipay.com  # x", "stands in alipay twice"),
    "no evidence": ("alipay/payment.list", "antpay.cn", "has no evidence"),
    "an exemption without a reason": ("alipay/payment.list", "!mail.alipay.com", "has no evidence"),
    "a URL": ("alipay/payment.list", "https://antpay.cn/  # x", "is a URL"),
    "a wildcard": ("alipay/payment.list", "*.antpay.cn  # x", "has a wildcard"),
    "a reserved name": ("alipay/payment.list", "pay.example.com  # x", "is a reserved name"),
    "a list of no function": ("alipay/games.list", "antpay.cn  # x", "is named after no function"),
    "a misspelt shared list": ("alipay/payment.shard.list", "antpay.cn  # x", "is named after no function"),
    "an empty list": ("alipay/push.list", "# nothing", "has no entry"),
    "a binary list": ("alipay/push.list", "a\0b", "is binary"),
    "an unknown key": ("alipay/app.toml", "neighbors = []", "unknown key"),
}


@pytest.mark.parametrize("accident", ACCIDENTS, ids=str)
def test_the_check_finds(accident: str, tmp_path: Path) -> None:
    path, line, message = ACCIDENTS[accident]
    root = shutil.copytree(BLOCKLISTS, tmp_path / "blocklists")
    with (root / path).open("a") as file:
        file.write(line + "\n")
    found = [str(problem) for problem in check.problems(root)]
    assert any(message in problem for problem in found), found


# ── verdicts ───────────────────────────────────────────────────────────────────────────────────────────────────


def differences(compiled: Compiled, oracle: Oracle) -> list[str]:
    found = []
    for subject in {subject for row in ROWS for subject in subjects(row)}:
        try:
            expected = oracle.address(ipaddress.ip_address(subject))
        except ValueError:
            expected = oracle.name(subject)
        decided = rule(compiled, subject)
        if bool(decided) != expected:
            found.append(f"{subject}: {decided or 'passes'}, expected {'blocked' if expected else 'passes'}")
    return sorted(found)


def test_every_row_has_its_default_verdict(default: Compiled) -> None:
    assert differences(default, Oracle(naive.lines(), naive.by_default, shared=False)) == []


def test_every_row_has_its_verdict_with_everything_on(everything: Compiled) -> None:
    assert differences(everything, Oracle(naive.lines(), naive.always, shared=True)) == []


def test_every_row_has_its_verdict_with_everything_but_the_shared_lists_on(all_but_shared: Compiled) -> None:
    assert differences(all_but_shared, Oracle(naive.lines(), naive.always, shared=False)) == []


def chosen(which: Callable[[Row], bool]) -> list[str]:
    """The names, addresses and last addresses of networks of some rows."""
    found = [list(subjects(row))[-1] if "/" in row["value"] else row["value"] for row in ROWS if which(row)]
    assert len(found) > 10
    return found


def test_payment_and_telemetry_of_the_eight_are_blocked_by_default(default: Compiled) -> None:
    def own(row: Row) -> bool:
        return row["app"] in THE_EIGHT and row["function"] in ("payment", "telemetry") and row["collateral"] in ("none", "low")

    assert [value for value in chosen(own) if not rule(default, value)] == []


def test_httpdns_is_blocked_by_default_for_the_eight_for_wechat_pay_and_across_apps(default: Compiled) -> None:
    def resolver(row: Row) -> bool:
        return row["function"] == "httpdns" and row["collateral"] in ("none", "low")

    assert [value for value in chosen(resolver) if not rule(default, value)] == []


def test_public_resolvers_are_blocked_by_default(default: Compiled) -> None:
    assert [value for value in chosen(lambda row: row["function"] == "doh") if not rule(default, value)] == []
    assert [value for value in naive.PUBLIC_RESOLVERS if not rule(default, value).startswith("bypass/doh")] == []


def test_what_breaks_others_passes_unless_the_shared_lists_are_on(default: Compiled, everything: Compiled) -> None:
    def breaks_others(row: Row) -> bool:
        shared = row["kind"] != "asn" and row["collateral"] in ("medium", "high")
        return shared and row["value"] not in naive.PUBLIC_RESOLVERS

    # the last address of a network: a half of two of WeChat's is listed for WeChat Pay
    found = chosen(breaks_others)
    assert [value for value in found if rule(default, value)] == []
    assert [value for value in found if not rule(everything, value)] == []


@pytest.mark.parametrize(
    ("subject", "expected"),
    [
        ("mygw.alipay.com", "alipay/payment alipay.com"),  # core, below a payment suffix
        ("mygwshort.alipay.com", "alipay/payment alipay.com"),
        ("amdc.alipay.com", "alipay/httpdns amdc.alipay.com"),
        ("110.75.143.65", "alipay/payment 110.75.143.65"),  # listed within a shared network
        ("short.pay.weixin.qq.com", "wechat-pay/payment pay.weixin.qq.com"),
        ("dns.weixin.qq.com", "wechat-pay/httpdns dns.weixin.qq.com"),
        ("123.151.54.50", "wechat-pay/httpdns 123.151.54.50"),
        ("analytics.map.qq.com", "qq/telemetry analytics.map.qq.com"),  # below an exemption of a shared suffix
        ("203.107.1.33", "bypass/httpdns 203.107.1.0/24"),
        ("119.29.29.98", "bypass/httpdns 119.29.29.98"),
        ("8.8.8.8", "bypass/doh 8.8.8.8"),
        ("2001:4860:4860::8888", "bypass/doh 2001:4860:4860::8888"),
        ("abc123.dns.nextdns.io", "bypass/doh dns.nextdns.io"),
        ("use-application-dns.net", "bypass/canary use-application-dns.net"),
        ("deeper.use-application-dns.net", "bypass/canary use-application-dns.net"),
        ("mask.icloud.com", "bypass/relay mask.icloud.com"),
        ("mask-h2.icloud.com", "bypass/relay mask-h2.icloud.com"),
        ("cn-hangzhou-mas-log.cloud.alipay.com", ""),  # shared, below a suffix that is on
        ("110.75.128.1", ""),
        ("119.29.29.30", ""),
        ("long.weixin.qq.com", ""),  # WeChat is off
        ("tiktok.com", ""),
        ("mail.qq.com", ""),
        ("wx.mail.qq.com", ""),
        ("www.umeng.com", ""),
        ("adashx.m.taobao.com.cn", ""),
    ],
)
def test_by_default(default: Compiled, subject: str, expected: str) -> None:
    assert rule(default, subject) == expected


def test_exempt_names_pass_even_with_the_shared_lists_on(everything: Compiled) -> None:
    for name in ("mail.qq.com", "docs.qq.com", "captcha.qq.com", "cloud.tencent.com", "qt.gtimg.cn", "work.weixin.qq.com"):
        assert rule(everything, name) == "", name


def test_every_neighbour_works_by_default(default: Compiled) -> None:
    neighbours = {name for app in check.load(BLOCKLISTS) for name in app.neighbours}
    assert len(neighbours) > 50
    assert {name for name in neighbours if rule(default, name)} == set()


# ── apps ───────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_eight_are_on_by_default_and_wechat_and_tiktok_are_not() -> None:
    apps = {app.id: app.default for app in check.load(BLOCKLISTS)}
    assert {id_ for id_, default in apps.items() if default} == THE_EIGHT
    assert {id_ for id_, default in apps.items() if not default} == {"wechat", "tiktok", "bypass"}


def test_every_app_says_which_order_named_it_and_that_it_was_revoked() -> None:
    for app in check.load(BLOCKLISTS):
        if app.id != policy.BYPASS:
            number = {"wechat": "13943", "tiktok": "13942"}.get(app.id, "13971")
            assert app.order.startswith(f"Executive Order {number} of "), app.id
            assert "revoked on 9 June 2021 by Executive Order 14034" in app.order, app.id


def test_every_app_has_a_payment_or_a_telemetry_list() -> None:
    for app in check.load(BLOCKLISTS):
        functions = {list_.source.function for list_ in app.lists}
        assert functions & {"payment", "telemetry"} or app.id == policy.BYPASS, app.id


def test_bypass_has_every_function_that_is_not_a_port() -> None:
    (bypass,) = [app for app in check.load(BLOCKLISTS) if app.id == policy.BYPASS]
    assert {list_.source.function for list_ in bypass.lists} == set(policy.BYPASS_FUNCTIONS) - set(policy.PORT_FUNCTIONS)


def test_every_text_of_an_app_survives_its_file() -> None:
    overlay = facts.overlay()
    for id_, app in overlay.apps.items():
        written = tomllib.loads(build.app_file(id_, app))
        assert written == {"id": id_, **{key: value for key, value in app.items() if key != "unknown"}}
