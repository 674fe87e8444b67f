"""Zone cuts of blocked names: what a validating resolver needs for a name that passes below."""

import dns.rrset
import pytest

from embargo import names
from embargo.dns.questions import Forward
from support.playbook import answer, play, rules

CUT = ("DS", "DNSKEY")


@pytest.mark.parametrize("qtype", CUT)
@pytest.mark.parametrize(
    ("entries", "allow", "name", "passes"),
    [
        (("evil.test",), "mail.evil.test", "evil.test", True),
        (("evil.test",), "mail.evil.test", "MAIL.evil.test", True),
        (("evil.test",), "mail.evil.test", "x.evil.test", False),
        (("evil.test",), "a.b.evil.test", "b.evil.test", True),
        (("evil.test",), "a.b.evil.test", "c.evil.test", False),
        (("evil.test",), "=mail.evil.test", "evil.test", True),
        (("evil.test", "!mail.evil.test"), "", "evil.test", True),
        (("evil.test", "!a.mail.evil.test"), "", "mail.evil.test", True),
        (("evil.test",), "", "evil.test", False),
        (("evil.test",), "good.test", "evil.test", False),
        (("evil.test", "x.evil.test"), "", "evil.test", False),
        (("=evil.test",), "", "evil.test", True),
        (("=evil.test", "test"), "", "evil.test", False),
    ],
)  # fmt: skip
def test_the_records_of_a_cut_pass_where_something_below_does(
    qtype: str, entries: tuple[str, ...], allow: str, name: str, passes: bool
) -> None:
    found = play(*entries, allow=allow).query(name, qtype)
    assert isinstance(found.outcome, Forward) == passes
    assert not found.was_fast
    for other in ("A", "NS", "SOA", "RRSIG", "ANY", "TYPE65399"):
        outcome = play(*entries, allow=allow).query(name, other).outcome
        assert isinstance(outcome, Forward) == (name.lower() == allow)


def test_the_answer_about_a_cut_is_passed_on_and_kept() -> None:
    made = answer("evil.test", "DS", "12345 8 2 " + "AB" * 32)
    found = play("evil.test", allow="mail.evil.test").query("evil.test", "DS").upstream(made)
    for _ in range(2):
        found.replies("12345 8 2 " + "ab" * 32).query("evil.test", "DS").forwards_nothing()
    assert found.was_fast, "the cached answer needs no look-up"
    found.adopt(rules("evil.test", number=2)).query("evil.test", "DS").is_blocked("evil.test")


def test_a_proof_that_there_is_no_cut_is_passed_on_whole() -> None:
    made = answer("evil.test", "DS")
    for record in ("test. 60 IN SOA ns.test. mail.test. 1 2 3 4 60", "evil.test. 60 IN NSEC fine.test. NS RRSIG NSEC"):
        owner, ttl, class_, rtype, text = record.split(None, 4)
        made.authority.append(dns.rrset.from_text(owner, int(ttl), class_, rtype, text))
    reply = play("evil.test", allow="mail.evil.test").query("evil.test", "DS", do=True).upstream(made).replies().reply
    assert len(reply.authority) == 2


def test_an_alias_in_place_of_the_records_of_a_cut_is_judged() -> None:
    found = play("evil.test", "worse.test", allow="mail.evil.test").query("evil.test", "DS")
    found.upstream(answer("evil.test", "DS", "evil.test CNAME worse.test.")).is_blocked("worse.test")


def test_names_above_exceptions_are_few() -> None:
    judgement = rules("evil.test", "!a.b.mail.evil.test", allow="good.test\ndeep.x.evil.test")
    above = {"evil.test", "b.mail.evil.test", "mail.evil.test", "x.evil.test"}
    assert judgement.image.cuts == {names.from_text(name) for name in above}
