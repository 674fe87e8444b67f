"""What `embargo status` says is not covered, and what `embargo why` says of an address, from what the parts tell."""

from typing import Any

import pytest

from embargo import config, explain

DAY = 86_400
REPORT: dict[str, Any] = {"apps": []}
LISTS = [
    {"list": "bypass/doh.list", "entries": 100, "age": DAY}, {"list": "bypass/httpdns.list", "entries": 50, "age": DAY},
    {"list": "bypass/canary.list", "entries": 1, "age": 900 * DAY},
    {"list": "alipay/payment.list", "entries": 9, "age": 900 * DAY},
]  # fmt: skip


def uncovered(text: str = "", lists: list[dict[str, Any]] = LISTS, wall: dict[str, Any] | None = None) -> str:
    settings = config.parse(text.encode(), "")
    return "\n".join(explain.uncovered(settings, REPORT, True, lists, wall or {}))


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        (LISTS, ""),
        (LISTS[1:], "servers of doh: there is no list bypass/doh.list"),
        ([{**LISTS[0], "entries": 0}, *LISTS[1:]], "servers of doh: there is no list bypass/doh.list"),
        (LISTS[:1], "servers of httpdns: there is no list bypass/httpdns.list"),
        (
            [{**LISTS[0], "age": 200 * DAY}, LISTS[1]],
            "in the last 200 days: bypass/doh.list is that old",
        ),
    ],
)
def test_lists_of_servers_that_are_missing_or_old_are_named(rows: list[dict[str, Any]], said: str) -> None:
    found = uncovered(lists=rows)
    assert said in found if said else "servers of" not in found


def test_a_way_round_that_is_switched_off_is_named_and_its_list_is_not_missed() -> None:
    found = uncovered('[policy]\nbypass = ["dot"]\n', lists=[])
    assert "ways round the filter that are left open: doq, doh, httpdns, canary, relay" in found
    assert "servers of" not in found


def test_a_flowtable_is_named() -> None:
    assert "open flows that the flowtable filter/fast forwards past all rules" in uncovered(
        wall={"flowtables": ["filter/fast"]}
    )
    assert "flowtable" not in uncovered(wall={"flowtables": []})


def test_what_learning_leaves_open_is_told() -> None:
    settings = config.parse(b'[firewall]\nlan = ["lan0"]\n', "c.toml")
    assert "clients behind guest0, docker0, if there are any" in "\n".join(
        explain.uncovered(settings, REPORT, True, LISTS, {}, ["guest0", "docker0"])
    )
    assert "firewall.learn = false" in uncovered("[firewall]\nlearn = false\n")
    assert "for 300 s yet they are noted and not blocked" in uncovered(wall={"learning": {"proving": 300}})
    assert "they cannot be saved: No space left" in uncovered(wall={"learning": {"trouble": "No space left"}})
    assert "2 addresses behind blocked names that others use too" in uncovered(wall={"learning": {"spared": [1, 2]}})
    assert "addresses" not in uncovered(wall={"learning": {"proving": 0, "trouble": "", "spared": []}})


def test_an_address_that_was_learnt_is_blocked_and_a_listed_one_stays_its_lists() -> None:
    learnt = {"name": "pay.example", "app": "a", "function": "payment", "list": "a/payment.list", "line": 3, "rule": "example"}
    about: dict[str, Any] = {"passing": False, "names": ["pay.example"], "learnt": learnt}
    told: dict[str, Any] = {"verdict": "passed", "reason": "nobody lists it"}
    explain.add_learnt(told, about)
    assert (told["verdict"], told["learnt"], told["list"], told["line"]) == ("blocked", "pay.example", "a/payment.list", 3)
    listed: dict[str, Any] = {"verdict": "blocked", "list": "b/core.list"}
    explain.add_learnt(listed, about)
    assert (listed["list"], listed["names"]) == ("b/core.list", ["pay.example"])
    assert "learnt" not in listed
