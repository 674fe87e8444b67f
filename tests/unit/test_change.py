"""The order in which a ruleset is replaced: what each transaction may touch, and what it must leave alone."""

import dataclasses
from collections.abc import Iterable
from typing import Any

import pytest

from embargo.firewall import change, nft, ruleset, spans
from embargo.firewall.change import Holding
from embargo.firewall.nft import Message
from embargo.firewall.ruleset import Spec
from embargo.firewall.table import Ruleset
from embargo.lists.policy import Action, Class
from golden import rulesets

PAY, LOGS = Class("alipay", "payment"), Class("alipay", "telemetry")


def holding(of: Ruleset) -> Holding:
    """What the kernel holds after this has been put in force."""
    hooks = {chain.name: chain.hook is not None for chain in of.chains}
    return Holding(True, [each.name for each in of.sets], hooks, of.counters)


def made(generation: int, class_: Class = PAY, **members: Any) -> Ruleset:
    ranges = ((4, 10, 10, class_), (4, 20, 29, class_), (6, 10, 10, class_), (6, 20, 29, class_))
    spec = Spec(generation, ((class_, Action.BLOCK),), spans.gather(ranges), log_group=1)
    return ruleset.build(dataclasses.replace(spec, **members))


def said(messages: Iterable[Message]) -> list[str]:
    return [message.about for message in messages]


@pytest.mark.parametrize("case", rulesets.CASES)
def test_the_change_neither_makes_nor_fills_nor_deletes_a_set(case: str) -> None:
    """A new interval set matches nothing in the transaction that fills it, and a deleted one nothing from then on."""
    new = rulesets.CASES[case]()
    for old in (change.NOTHING, holding(made(99, LOGS, lan=("lan0",), intercept_port=53))):
        assert {message.kind for message in change.switch(new, old)} == {nft.NEWCHAIN, nft.DELRULE, nft.NEWRULE}


@pytest.mark.parametrize("case", rulesets.CASES)
def test_before_the_change_no_rule_in_a_hook_is_touched(case: str) -> None:
    new = rulesets.CASES[case]()
    hooked = {f"add {what} {chain.name}" for chain in new.chains if chain.hook for what in ("chain", "rule")}
    for old in (change.NOTHING, holding(made(99, LOGS, lan=("lan0",), intercept_port=53))):
        assert not hooked & set(said(change.prepare(new, old)))
        assert not any(message.kind in (nft.DELRULE, nft.DELCHAIN, nft.DELSET) for message in change.prepare(new, old))


def test_a_class_that_stays_keeps_its_chain_until_the_change() -> None:
    old, new = made(1), made(2)
    assert "add rule alipay_payment" not in said(change.prepare(new, holding(old)))
    assert "add rule alipay_telemetry" in said(change.prepare(made(2, LOGS), holding(old)))


def test_what_remains_is_what_the_new_rules_do_not_use() -> None:
    old = made(1, lan=("lan0",), intercept_port=53)
    assert said(change.remains(made(2, LOGS), holding(old))) == [
        "flush chain alipay_payment", "flush chain prerouting",
        "delete set address4_1", "delete set network4_1", "delete set learnt4_1",
        "delete set address6_1", "delete set network6_1", "delete set learnt6_1",
        "delete set to_embedded_1", "delete set from_embedded_1", "delete set lan_1",
        "delete chain alipay_payment", "delete chain prerouting",
    ]  # fmt: skip
    assert said(change.remains(made(1), holding(made(1)))) == []


def test_a_hook_that_is_left_alone_is_emptied_by_the_change_and_a_class_is_not() -> None:
    """A packet still on the old rules may be on its way to the chain of its class."""
    flushed = said(change.switch(made(2, LOGS), holding(made(1, lan=("lan0",), intercept_port=53))))
    assert "flush chain prerouting" in flushed
    assert "flush chain alipay_payment" not in flushed


def test_additions_are_what_has_come_since() -> None:
    old, new = holding(made(1)), holding(made(2, LOGS))
    now = Holding(True, [*old.sets, *new.sets], {**old.chains, **new.chains}, [*old.counters, *new.counters])
    assert said(change.additions("embargo", old, now)) == [
        "delete set address4_2", "delete set network4_2", "delete set learnt4_2",
        "delete set address6_2", "delete set network6_2", "delete set learnt6_2",
        "delete set to_embedded_2", "delete set from_embedded_2",
        "flush chain alipay_telemetry", "delete chain alipay_telemetry", "delete counter alipay_telemetry",
    ]  # fmt: skip
    assert said(change.additions("embargo", change.NOTHING, now)) == ["delete table inet embargo"]
    assert said(change.additions("embargo", change.NOTHING, change.NOTHING)) == []
