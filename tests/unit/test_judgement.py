"""A judgement: which clients are answered, and how a block is explained."""

from embargo import events, names
from embargo.dns.judgement import ACL_MEMO, Acl
from support.playbook import rules

BLOCKED = "alipay.example"


def test_clients_are_remembered_and_bounded() -> None:
    acl = Acl(["192.0.2.0/24", "2001:db8::/32"])
    for number in range(2 * ACL_MEMO):
        assert not acl.allows(f"198.51.{number >> 8 & 255}.{number & 255}")
        assert acl.allows("192.0.2.1")
    assert acl.allows("2001:db8::1%lan0")
    assert acl.allows("::ffff:192.0.2.1")
    assert not acl.allows("::ffff:198.51.100.1")
    assert len(acl) <= ACL_MEMO


def test_a_judgement_explains_itself() -> None:
    judgement = rules("free.test", BLOCKED)
    (decision,) = judgement.image.lookup(names.from_text("www.alipay.example"))
    assert judgement.explain(decision) == "app=alipay function=payment list=alipay/payment.list:2 rule=alipay.example"
    assert judgement.told(decision) == (
        '"app":"alipay","function":"payment","list":"alipay/payment.list","line":2,"rule":"alipay.example"'
    )


def test_an_events_words_are_json() -> None:
    odd = r"a\"b.example"
    judgement = rules(odd)
    (decision,) = judgement.image.lookup(names.from_text(odd))
    assert events.quote(decision.rule) in judgement.told(decision)
