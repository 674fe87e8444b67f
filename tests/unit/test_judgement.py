"""A judgement: how a block is explained."""

from embargo import events, names
from support.playbook import rules

BLOCKED = "alipay.example"


def test_a_judgement_explains_itself() -> None:
    judgement = rules("free.test", BLOCKED)
    (decision,) = judgement.image.lookup(names.from_text("www.alipay.example"))
    assert judgement.explain(decision) == "app=alipay function=payment list=alipay/payment.list:2 rule=alipay.example"
    assert judgement.event_of(decision) == {
        "action": '"nxdomain"', "mode": '"block"', "app": '"alipay"', "function": '"payment"', "list": '"alipay/payment.list"',
        "line": "2", "rule": '"alipay.example"', "generation": "1",
    }  # fmt: skip


def test_an_events_words_are_json() -> None:
    odd = r"a\"b.example"
    judgement = rules(odd)
    (decision,) = judgement.image.lookup(names.from_text(odd))
    assert judgement.event_of(decision)["rule"] == events.quote(decision.rule)
