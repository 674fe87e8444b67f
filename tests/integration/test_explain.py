"""NOT COVERED of `embargo status`, and the verdict of `embargo why` for an address that the guardian knows."""

from dataclasses import replace
from typing import Any

import pytest

from embargo import config, explain
from embargo import uncovered as uncovered_
from embargo.lists.policy import Switchboard
from embargo.report import AboutAddress, AppReport, FunctionReport, Learning, LearntReason, ListReport, Report, Spared, Verdict

DAY = 86_400
NOW = 2000.0 * DAY


def listed(path: str, entries: int, days: int) -> ListReport:
    """The report of a list of this age."""
    return ListReport(path, f"/lists/{path}", entries, 0, NOW - days * DAY)


DOH, HTTPDNS = listed("bypass/doh.list", 100, 1), listed("bypass/httpdns.list", 50, 1)
LISTS = [DOH, HTTPDNS, listed("bypass/canary.list", 1, 900), listed("alipay/payment.list", 9, 900)]
LEARNING = Learning(True, 0, 0, 0, (), {}, "")


def uncovered(text: str = "", lists: list[ListReport] = LISTS, **reported: Any) -> str:
    report = Report("", "", "", Switchboard(()), 0, 0, {}, "", (), tuple(lists), ())
    settings = config.parse(text.encode(), "")
    return "\n".join(uncovered_.uncovered(settings, report, now=NOW, listening=True, **reported))


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        (LISTS, ""),
        (LISTS[1:], "servers of doh: there is no list bypass/doh.list"),
        ([listed("bypass/doh.list", 0, 1), *LISTS[1:]], "servers of doh: there is no list bypass/doh.list"),
        (LISTS[:1], "servers of httpdns: there is no list bypass/httpdns.list"),
        ([listed("bypass/doh.list", 100, 200), HTTPDNS], "added in the last 200 days: bypass/doh.list is that old"),
    ],
)
def test_lists_of_servers_that_are_missing_or_old_are_named(rows: list[ListReport], said: str) -> None:
    found = uncovered(lists=rows)
    assert said in found if said else "servers of" not in found


def test_a_bypass_that_is_off_is_named_and_its_missing_list_is_not() -> None:
    found = uncovered('[policy]\nbypass = ["dot"]\n', lists=[])
    assert "bypasses that are not blocked: doq, doh, httpdns, canary, relay" in found
    assert "servers of" not in found


def with_apps(*apps: AppReport, text: str = "") -> list[str]:
    report = Report("", "", "", Switchboard(()), 0, 0, {}, "", apps, tuple(LISTS), ())
    return uncovered_.uncovered(config.parse(text.encode(), ""), report, now=NOW, listening=True)


def test_shared_entries_are_counted_where_their_function_is_on_and_they_are_off() -> None:
    functions = {"core": FunctionReport(False, 1, 1, 20, 1), "payment": FunctionReport(True, 1, 1, 5, 4)}
    app = AppReport("qq", "QQ", "", "", "", "", True, True, False, functions)
    bypass = replace(app, id="bypass", functions={"httpdns": FunctionReport(True, 17, 40, 0, 4)})
    expected = "13 entries of the blocked functions, because other services use them too (policy.shared)"
    assert expected in with_apps(app, bypass)
    assert not any("policy.shared" in gap for gap in with_apps(replace(app, shared=True), replace(bypass, shared=True)))


@pytest.mark.parametrize(("text", "said"), [
    ("", "functions other than payment, telemetry and httpdns (policy.functions)"),
    ('functions = ["payment"]\nbypass = []', "functions other than payment (policy.functions)"),
    ('functions = ["httpdns", "payment"]', "functions other than httpdns and payment (policy.functions)"),
])  # fmt: skip
def test_the_functions_that_are_blocked_are_named_with_httpdns(text: str, said: str) -> None:
    assert said in with_apps(text=f"[policy]\n{text}\n")


def test_an_app_without_addresses_is_named() -> None:
    app = AppReport("qq", "QQ", "", "", "", "", True, True, False, {"payment": FunctionReport(True, names=1)})
    assert "addresses of qq: no list has any for the blocked functions; only their names are blocked" in with_apps(app)


def test_a_flowtable_is_named() -> None:
    assert "open connections that the flowtable filter/fast forwards past all rules" in uncovered(flowtables=["filter/fast"])
    assert "flowtable" not in uncovered(flowtables=[])
    assert "DNS queries on lna0: dns.listen names it, and no such interface has an address" in uncovered(absent=["lna0"])


def test_gaps_of_learning_are_named() -> None:
    found = uncovered('[firewall]\nlan = ["lan0"]\n', unfiltered=["guest0", "docker0"])
    assert "clients behind guest0, docker0, if there are any" in found
    assert "firewall.learn = false" in uncovered("[firewall]\nlearn = false\n")
    assert "blocking starts in 0:05:00 (until then they are only recorded)" in uncovered(
        learning=Learning(True, 0, 0, 300, (), {}, "")
    )
    assert "they cannot be saved: No space left" in uncovered(learning=Learning(True, 0, 0, 0, (), {}, "No space left"))
    spared = tuple(Spared(f"203.0.113.{n}", "pay.example", "mail.example") for n in range(2))
    assert "2 addresses behind blocked names that other names use too" in uncovered(
        learning=Learning(True, 0, 0, 0, spared, {}, "")
    )
    assert "addresses" not in uncovered(learning=LEARNING)
    full = Learning(True, 0, 0, 0, (), {"overflow": 3, "crowded": 4, "unanswered": 5, "freed": 6}, "")
    assert "3 addresses behind blocked names since the start" in uncovered(learning=full)
    assert "9 reports between resolvers and firewall since the start" in uncovered(learning=full)
    assert "12 reports between" in uncovered(learning=full, untold=3)
    assert "7 reports between" in uncovered(learning=LEARNING, untold=7)


def test_a_learnt_address_is_blocked_and_lists_take_precedence() -> None:
    about = AboutAddress(
        False, ("pay.example",), LearntReason("a", "payment", "a/payment.list", 3, "example", "pay.example"), None
    )
    passed = Verdict("203.0.113.9", "address", "passed", reason="no list claims it")
    found = explain.with_learnt(passed, about)
    assert (found.verdict, found.learnt, found.list, found.line) == ("blocked", "pay.example", "a/payment.list", 3)
    assert found.reason is None
    listed_ = Verdict("203.0.113.9", "address", "blocked", list="b/core.list", line=1)
    found = explain.with_learnt(listed_, about)
    assert (found.list, found.names, found.learnt) == ("b/core.list", ("pay.example",), None)
