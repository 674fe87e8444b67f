"""Precedence, one sentence of the contract at a time. `A verdict` is what the switchboard makes of the claims."""

import ipaddress
from collections.abc import Mapping, Sequence

import pytest

from embargo import names
from embargo.lists import image, policy
from embargo.lists.image import Image
from embargo.lists.policy import Action, App, Class, Decision, Level, List, Selection, Switchboard
from support import catalogue
from support.catalogue import local

EVERYTHING = Selection(apps="all", functions="all")


class Judge:
    """A policy under test. Claims and verdicts are told as `list:line rule`."""

    def __init__(
        self, files: Mapping[str, Sequence[str]], selection: Selection = EVERYTHING, own: Sequence[List] = (), default: str = ""
    ) -> None:
        self.apps = catalogue.apps(files, default.split())
        combined = policy.combine(self.apps, own, selection)
        self.board = policy.select(self.apps, combined.classes, selection)
        self.image = Image(image.encode(combined))

    def _told(self, decision: Decision) -> str:
        return f"{self.image.sources[decision.source].path}:{decision.line} {decision.rule}"

    def _lookup(self, asked: str) -> policy.Claims:
        if asked.replace(".", "").isdigit() or ":" in asked:
            return self.image.lookup_address(ipaddress.ip_address(asked).packed)
        return self.image.lookup(names.from_text(asked))

    def claims(self, asked: str) -> list[str]:
        return [self._told(claim) for claim in self._lookup(asked)]

    def verdict(self, asked: str) -> str | None:
        """The line that blocks (or audits), None when nothing does."""
        action, decision = self.board.choose(self._lookup(asked))
        assert (action is Action.PASS) == (decision is None)
        return self._told(decision) if decision else None

    def action(self, asked: str) -> Action:
        return self.board.choose(self._lookup(asked))[0]


# ── entries ──────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_suffix_matches_itself_and_all_names_below_it_only() -> None:
    judge = Judge({"alipay/payment.list": ["alipay.com"]})
    for name in ("alipay.com", "ALIPAY.com", "www.alipay.com", "a.b.c.alipay.com"):
        assert judge.verdict(name) == "alipay/payment.list:1 alipay.com"
    for name in ("com", "notalipay.com", "alipay.com.cn", "xalipay.com", "alipay.org", "."):
        assert judge.claims(name) == []


def test_an_exact_entry_matches_its_name_only() -> None:
    judge = Judge({"alipay/payment.list": ["=pay.example.com"]})
    assert judge.verdict("pay.example.com") == "alipay/payment.list:1 =pay.example.com"
    for name in ("www.pay.example.com", "example.com", "xpay.example.com"):
        assert judge.verdict(name) is None


def test_the_longest_line_of_a_class_decides() -> None:
    judge = Judge({"alipay/payment.list": ["alipay.com", "pay.alipay.com", "=www.pay.alipay.com"]})
    assert judge.claims("www.pay.alipay.com") == ["alipay/payment.list:3 =www.pay.alipay.com"]
    assert judge.claims("x.www.pay.alipay.com") == ["alipay/payment.list:2 pay.alipay.com"]
    assert judge.claims("m.alipay.com") == ["alipay/payment.list:1 alipay.com"]


def test_an_exact_line_is_longer_than_a_suffix_of_the_same_name() -> None:
    judge = Judge({"alipay/payment.list": ["alipay.com", "=alipay.com"]})
    assert judge.claims("alipay.com") == ["alipay/payment.list:2 =alipay.com"]
    assert judge.claims("www.alipay.com") == ["alipay/payment.list:1 alipay.com"]


def test_of_two_equal_lines_the_first_is_named() -> None:
    judge = Judge({"qq/payment.list": ["qq.com", "# again", "QQ.com"], "qq/payment.shared.list": ["qq.com"]}, EVERYTHING_SHARED)
    assert judge.claims("qq.com") == ["qq/payment.list:1 qq.com"]


EVERYTHING_SHARED = Selection(apps="all", functions="all", shared=True)


# ── exceptions ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_an_exception_excludes_a_name_and_all_names_below_it_from_its_app() -> None:
    judge = Judge({"qq/payment.list": ["qq.com", "!mail.qq.com"]})
    assert judge.verdict("qq.com") == judge.verdict("pay.qq.com") == "qq/payment.list:1 qq.com"
    assert judge.claims("mail.qq.com") == judge.claims("imap.mail.qq.com") == []


def test_an_exception_applies_to_all_lists_of_its_app() -> None:
    judge = Judge({"qq/payment.list": ["qq.com"], "qq/telemetry.list": ["qq.com"], "qq/core.list": ["!mail.qq.com"]})
    assert judge.claims("mail.qq.com") == []


def test_an_exception_does_not_apply_to_other_apps() -> None:
    judge = Judge({"qq/payment.list": ["qq.com", "!mail.qq.com"], "wechat/payment.list": ["qq.com"]})
    assert judge.claims("mail.qq.com") == ["wechat/payment.list:1 qq.com"]


def test_a_longer_line_than_an_exception_claims_and_shorter_lines_do_not() -> None:
    judge = Judge({"qq/payment.list": ["qq.com", "!mail.qq.com"], "qq/telemetry.list": ["log.mail.qq.com"]})
    assert judge.claims("x.log.mail.qq.com") == ["qq/telemetry.list:1 log.mail.qq.com"]
    assert judge.claims("mail.qq.com") == []


def test_an_exception_beats_a_line_of_the_same_name() -> None:
    judge = Judge({"qq/payment.list": ["!mail.qq.com", "mail.qq.com"], "qq/core.list": ["mail.qq.com"]})
    assert judge.claims("mail.qq.com") == judge.claims("x.mail.qq.com") == []


def test_an_exact_line_is_longer_than_an_exception_of_the_same_name() -> None:
    judge = Judge({"qq/payment.list": ["!mail.qq.com", "=mail.qq.com"]})
    assert judge.claims("mail.qq.com") == ["qq/payment.list:2 =mail.qq.com"]
    assert judge.claims("x.mail.qq.com") == []


# ── classes ──────────────────────────────────────────────────────────────────────────────────────────────────────────────

MYGW = {"alipay/payment.list": ["alipay.com"], "alipay/httpdns.list": ["mygw.alipay.com"]}


def test_a_longer_line_of_another_function_adds_its_class_and_removes_none() -> None:
    claims = ["alipay/httpdns.list:1 mygw.alipay.com", "alipay/payment.list:1 alipay.com"]
    assert Judge(MYGW).claims("mygw.alipay.com") == claims
    assert Judge(MYGW).claims("alipay.com") == claims[1:]


@pytest.mark.parametrize(
    ("functions", "bypass", "line"),
    [
        (("payment",), (), "alipay/payment.list:1 alipay.com"),
        ((), ("httpdns",), "alipay/httpdns.list:1 mygw.alipay.com"),
        (("payment",), ("httpdns",), "alipay/httpdns.list:1 mygw.alipay.com"),
        (("httpdns",), (), "alipay/httpdns.list:1 mygw.alipay.com"),
        (("telemetry",), (), None),
    ],
)
def test_a_name_is_blocked_when_any_claiming_class_is_on(
    functions: tuple[str, ...], bypass: tuple[str, ...], line: str | None
) -> None:
    judge = Judge(MYGW, Selection(apps="all", functions=functions, bypass=bypass))
    assert judge.verdict("mygw.alipay.com") == line


def test_the_longest_entry_of_a_class_that_is_on_is_named_whatever_its_app() -> None:
    judge = Judge({"alipay/payment.list": ["example.com"], "zz/payment.list": ["pay.example.com"]})
    assert judge.verdict("pay.example.com") == "zz/payment.list:1 pay.example.com"
    only = Judge(
        {"alipay/payment.list": ["example.com"], "zz/payment.list": ["pay.example.com"]},
        Selection(apps=("alipay",), functions="all"),
    )
    assert only.verdict("pay.example.com") == "alipay/payment.list:1 example.com"


def test_ties_go_in_order_of_app_then_function() -> None:
    files = {
        "qq/telemetry.list": ["x.example"], "qq/ads.list": ["x.example"], "alipay/telemetry.list": ["x.example"],
        "alipay/payment.list": ["x.example"], "alipay/payment.shared.list": ["x.example"],
    }  # fmt: skip
    assert Judge(files, EVERYTHING_SHARED).claims("x.example") == [
        "alipay/payment.list:1 x.example", "alipay/telemetry.list:1 x.example", "qq/ads.list:1 x.example",
        "qq/telemetry.list:1 x.example",
    ]  # fmt: skip


# ── shared lists ─────────────────────────────────────────────────────────────────────────────────────────────────────────

SHARED = {"qq/payment.list": ["qq.com"], "qq/core.shared.list": ["mail.qq.com", "=v.qq.com", "203.0.113.0/28"]}


def test_a_shared_line_that_is_off_counts_as_an_exception() -> None:
    judge = Judge(SHARED)
    assert judge.verdict("qq.com") == "qq/payment.list:1 qq.com"
    assert judge.claims("mail.qq.com") == judge.claims("x.mail.qq.com") == judge.claims("v.qq.com") == []
    assert judge.verdict("x.v.qq.com") == "qq/payment.list:1 qq.com"


@pytest.mark.parametrize("shared", [True, ("qq",), ("alipay", "qq")])
def test_a_shared_line_that_is_on_claims(shared: bool | tuple[str, ...]) -> None:
    judge = Judge(SHARED, Selection(apps="all", functions="all", shared=shared))
    assert judge.verdict("mail.qq.com") == "qq/core.shared.list:1 mail.qq.com"
    assert judge.verdict("203.0.113.7") == "qq/core.shared.list:3 203.0.113.0/28"


def test_shared_lists_are_on_for_the_apps_that_are_named() -> None:
    judge = Judge(SHARED, Selection(apps="all", functions="all", shared=("alipay",)))
    assert judge.verdict("mail.qq.com") is None


def test_a_shared_line_that_is_off_is_no_exception_for_other_apps() -> None:
    judge = Judge({**SHARED, "wechat/payment.list": ["qq.com"]})
    assert judge.verdict("mail.qq.com") == "wechat/payment.list:1 qq.com"


def test_a_longer_line_overrides_a_shared_line_that_is_off() -> None:
    judge = Judge({**SHARED, "qq/telemetry.list": ["log.mail.qq.com"]})
    assert judge.claims("log.mail.qq.com") == ["qq/telemetry.list:1 log.mail.qq.com"]


# ── levels ───────────────────────────────────────────────────────────────────────────────────────────────────────────────

LEVELS = (local(Level.ALLOW, "ok.qq.com", "203.0.113.5"), local(Level.BLOCK, "qq.com", "bad.example", "203.0.113.0/24"))
QQ = {"qq/payment.list": ["pay.ok.qq.com", "qq.com", "203.0.113.5", "203.0.113.64/26"]}


def test_the_allow_list_takes_precedence_even_with_a_shorter_line() -> None:
    judge = Judge(QQ, own=LEVELS)
    for asked in ("ok.qq.com", "pay.ok.qq.com", "203.0.113.5"):
        assert judge.verdict(asked) is None
    assert judge.claims("pay.ok.qq.com") == ["allow.list:1 ok.qq.com"]


def test_the_local_block_list_takes_precedence_over_apps() -> None:
    judge = Judge(QQ, own=LEVELS)
    assert judge.verdict("qq.com") == "block.list:1 qq.com"
    assert judge.verdict("bad.example") == "block.list:2 bad.example"
    assert judge.verdict("203.0.113.66") == "block.list:3 203.0.113.0/24"


def test_the_order_of_the_lists_does_not_matter_to_the_levels() -> None:
    judge = Judge(QQ, own=LEVELS[::-1])
    assert judge.verdict("ok.qq.com") is None
    assert judge.verdict("qq.com") == "block.list:1 qq.com"


def test_the_local_block_list_blocks_with_every_app_off() -> None:
    judge = Judge(QQ, Selection(apps=(), functions=(), bypass=()), own=LEVELS)
    assert judge.verdict("bad.example") == "block.list:2 bad.example"
    assert Judge(QQ, Selection(apps=(), functions=(), bypass=())).verdict("qq.com") is None


def test_an_exception_in_a_local_list_leaves_the_name_to_the_levels_below() -> None:
    own = (local(Level.ALLOW, "qq.com", "!pay.qq.com"), local(Level.BLOCK, "example", "!good.example"))
    judge = Judge({"qq/payment.list": ["qq.com", "good.example"]}, own=own)
    assert judge.verdict("www.qq.com") is None
    assert judge.verdict("pay.qq.com") == "qq/payment.list:1 qq.com"
    assert judge.verdict("good.example") == "qq/payment.list:2 good.example"
    assert judge.verdict("other.example") == "block.list:1 example"


def test_both_lists_of_a_level_count_as_one() -> None:
    own = (local(Level.ALLOW, "qq.com"), local(Level.ALLOW, "!pay.qq.com", path="local/allow.list"))
    assert Judge(QQ, own=own).claims("pay.qq.com") == ["qq/payment.list:2 qq.com"]


def test_claims_of_the_allow_list_are_recognised() -> None:
    judge = Judge(QQ, own=LEVELS)
    for asked, allowed in (("ok.qq.com", True), ("qq.com", False), ("nobody.example", False)):
        assert policy.allows(judge.image.classes, judge.image.lookup(names.from_text(asked))) is allowed


# ── networks ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_smallest_network_decides_and_an_exception_cuts_a_hole() -> None:
    judge = Judge({"qq/payment.list": ["203.0.113.0/24", "203.0.113.64/26", "!203.0.113.80/28", "203.0.113.81"]})
    assert judge.verdict("203.0.113.0") == judge.verdict("203.0.113.255") == "qq/payment.list:1 203.0.113.0/24"
    assert judge.verdict("203.0.113.64") == judge.verdict("203.0.113.127") == "qq/payment.list:2 203.0.113.64/26"
    assert judge.claims("203.0.113.80") == judge.claims("203.0.113.95") == []
    assert judge.claims("203.0.113.81") == ["qq/payment.list:4 203.0.113.81"]
    assert judge.claims("203.0.112.255") == judge.claims("203.0.114.0") == []


def test_overlapping_networks_of_several_apps_become_disjoint_ranges() -> None:
    files = {"alipay/payment.list": ["203.0.113.0/25"], "qq/payment.list": ["203.0.113.64/26", "203.0.113.128/26"]}
    combined = policy.combine(catalogue.apps(files), (), EVERYTHING)
    found = [(first & 255, last & 255, [claim.rule for claim in claims]) for first, last, claims in combined.networks[4]]
    assert found == [
        (0, 63, ["203.0.113.0/25"]), (64, 127, ["203.0.113.64/26", "203.0.113.0/25"]), (128, 191, ["203.0.113.128/26"]),
    ]  # fmt: skip


def spans(combined: policy.Policy) -> list[tuple[int, int]]:
    return [(first & 255, last & 255) for first, last, _ in combined.networks[4]]


def test_neighbouring_ranges_of_the_same_line_are_one() -> None:
    files = {"qq/payment.list": ["203.0.113.0/24", "203.0.113.128/25"], "qq/ads.list": ["!203.0.113.128/26"]}
    combined = policy.combine(catalogue.apps(files), (), EVERYTHING)
    assert spans(combined) == [(0, 127), (192, 255)]
    files = {"qq/payment.list": ["203.0.113.0/24"], "zz/ads.list": ["!203.0.113.0/25"]}
    same = policy.combine(catalogue.apps(files), (), EVERYTHING)
    assert spans(same) == [(0, 255)]


def test_the_first_and_last_addresses_can_be_listed() -> None:
    own = (local(Level.ALLOW, "0.0.0.0/0", "::/0"),)
    judge = Judge({}, own=own)
    for asked in ("0.0.0.0", "255.255.255.255", "::", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"):
        assert len(judge.claims(asked)) == 1


def test_names_and_addresses_do_not_affect_each_other() -> None:
    judge = Judge({"qq/payment.list": ["203.0.113.7", "2001:db8::/32"]})
    assert judge.claims("203.0.113.7.in-addr.arpa") == []
    assert judge.claims("2001:db8::cb00:7107") == ["qq/payment.list:2 2001:db8::/32"]


# ── the switchboard ──────────────────────────────────────────────────────────────────────────────────────────────────────

CATALOGUE = {
    "alipay/payment.list": ["pay.alipay.com"], "alipay/telemetry.list": ["log.alipay.com"], "alipay/core.list": ["alipay.com"],
    "alipay/httpdns.list": ["dns.alipay.com"],
    "wechat/payment.list": ["pay.wechat.com"], "wechat/httpdns.list": ["dns.wechat.com"],
    "bypass/doh.list": ["dns.example"], "bypass/canary.list": ["canary.example"], "bypass/httpdns.list": ["httpdns.example"],
}  # fmt: skip
ALL_OF_IT = {lines[0] for lines in CATALOGUE.values()}


@pytest.mark.parametrize(
    ("selection", "blocked"),
    [
        (
            Selection(),
            "pay.alipay.com log.alipay.com dns.alipay.com dns.example canary.example httpdns.example",
        ),
        (Selection(bypass=()), "pay.alipay.com log.alipay.com"),
        (Selection(bypass=("dot", "doq")), "pay.alipay.com log.alipay.com"),
        (Selection(bypass=("canary",)), "pay.alipay.com log.alipay.com canary.example"),
        (Selection(bypass=("httpdns",), functions=()), "dns.alipay.com httpdns.example"),
        (Selection(bypass=(), functions=("core",)), "pay.alipay.com log.alipay.com dns.alipay.com alipay.com"),
        (Selection(bypass=(), functions="all"), "pay.alipay.com log.alipay.com dns.alipay.com alipay.com"),
        (Selection(bypass=(), apps=("wechat",)), "pay.wechat.com"),
        (Selection(bypass=("httpdns",), apps=("wechat",)), "pay.wechat.com dns.wechat.com httpdns.example"),
        (Selection(bypass=(), apps=()), ""),
        (Selection(bypass=(), apps=("bypass",), functions="all"), ""),
        (Selection(apps="all", functions="all"), " ".join(ALL_OF_IT)),
    ],
)
def test_the_selection_determines_apps_and_functions(selection: Selection, blocked: str) -> None:
    judge = Judge(CATALOGUE, selection, default="alipay")
    assert {name for name in ALL_OF_IT if judge.verdict(name)} == set(blocked.split())


def test_audit_turns_every_block_into_an_audit() -> None:
    own = (local(Level.ALLOW, "ok.alipay.com"), local(Level.BLOCK, "bad.example"))
    judge = Judge(CATALOGUE, Selection(apps="all", functions="all", mode=Action.AUDIT), own=own)
    assert {judge.action(name) for name in (*ALL_OF_IT, "bad.example")} == {Action.AUDIT}
    assert judge.action("ok.alipay.com") is Action.PASS


def test_a_switchboard_names_the_first_claim_that_is_not_passed() -> None:
    claims = (Decision(0, 0, 1, "a"), Decision(1, 0, 2, "b"), Decision(2, 0, 3, "c"))
    assert Switchboard((Action.PASS, Action.AUDIT, Action.BLOCK)).choose(claims) == (Action.AUDIT, claims[1])
    assert Switchboard((Action.PASS,) * 3).choose(claims) == (Action.PASS, None)
    assert Switchboard(()).choose(()) == (Action.PASS, None)


def test_the_port_functions_of_bypass_are_classes_without_a_list() -> None:
    classes = policy.classes_of(catalogue.apps({"bypass/doh.list": ["dns.example"], "alipay/payment.list": ["a.example"]}))
    assert classes == (
        policy.LOCAL_ALLOW, policy.LOCAL_BLOCK, Class("alipay", "payment"), Class("bypass", "doh"), Class("bypass", "doq"),
        Class("bypass", "dot"),
    )  # fmt: skip
    assert policy.classes_of([App("alipay", "Alipay")]) == (policy.LOCAL_ALLOW, policy.LOCAL_BLOCK)
    assert str(Class("alipay", "payment")) == "alipay/payment"
