"""Decisions of a policy about addresses."""

import ipaddress

import pytest

from embargo import names, verdicts
from embargo.lists.image import Image
from embargo.lists.policy import Action, Switchboard
from support.playbook import compiled

LISTED = ipaddress.ip_address("203.0.113.9").packed


@pytest.mark.parametrize(("action", "guarded"), [(Action.BLOCK, True), (Action.AUDIT, True), (Action.PASS, False)])
def test_a_list_decides_about_its_addresses_unless_it_is_off(action: Action, guarded: bool) -> None:
    octets, _ = compiled("203.0.113.0/28")
    image = Image(octets)
    board = Switchboard((action,) * len(image.classes))
    assert verdicts.guard(image, board, ())(LISTED) is guarded
    assert verdicts.guard(image, board, ("203.0.113.0/24",))(LISTED), "a protected one is guarded all the same"


def test_an_allow_list_decides_about_its_addresses() -> None:
    octets, board = compiled("alipay.example", allow="203.0.113.9")
    assert verdicts.guard(Image(octets), board, ())(LISTED)


@pytest.mark.parametrize(
    ("name", "rule"), [("pay.alipay.example", "alipay.example"), ("good.alipay.example", ""), ("free.test", ""), (".", "")]
)
def test_a_reason_is_what_the_policy_says_of_the_name(name: str, rule: str) -> None:
    octets, board = compiled("alipay.example", allow="good.alipay.example")
    found = verdicts.why(Image(octets), board)(names.from_text(name))
    assert (found.rule if found else "") == rule
    assert not found or (found.list, found.line) == ("alipay/payment.list", 1)
