"""An answer lost its additional records to the policy, was marked as judged, and the fast path gave all of it out again."""

import dns.rrset

from support.playbook import answer, play


def test_what_was_cut_from_an_answer_stays_cut() -> None:
    made = answer("free.test", "MX", "10 mx.free.test.")
    made.additional.append(dns.rrset.from_text("mx.free.test.", 300, "IN", "A", "203.0.113.7"))
    found = play("203.0.113.0/24").query("free.test", "MX").upstream(made)
    for _ in range(3):
        assert not found.reply.additional
        assert len(found.reply.answer) == 1
        found.query("free.test", "MX").forwards_nothing()
    assert not found.was_fast
