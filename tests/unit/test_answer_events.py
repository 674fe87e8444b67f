"""Events of queries that are blocked or audited for what their answer leads to: they say what that is."""

import json

import pytest

from support.playbook import Play, answer, play

BLOCKED = "alipay.example"


def said(found: Play, *, names: bool = True) -> dict[str, object]:
    """The members of the event of the last reply's attempt."""
    attempt = found.settled[0].attempt
    assert attempt is not None
    event: dict[str, object] = json.loads("{" + attempt.members(names=names)[1:] + "}")
    return event


@pytest.mark.parametrize(
    ("qtype", "records", "lead"),
    [
        ("A", ["a.test CNAME pay.alipay.example.", "pay.alipay.example A 192.0.2.1"], "pay.alipay.example"),
        ("A", ["a.test CNAME b.test.", "b.test CNAME alipay.example."], "alipay.example"),
        ("A", ["192.0.2.1", "203.0.113.66", "203.0.113.67"], "203.0.113.66"),
        ("AAAA", ["2001:db8:66::1"], "2001:db8:66::1"),
        ("MX", ["10 mx.alipay.example."], "mx.alipay.example"),
        ("HTTPS", ["1 . ipv4hint=203.0.113.66"], "203.0.113.66"),
        ("HTTPS", ["0 svc.alipay.example."], "svc.alipay.example"),
        ("A", ["test DNAME alipay.example.", "a.alipay.example A 192.0.2.1"], "alipay.example"),
    ],
)
@pytest.mark.parametrize("mode", ["block", "audit"])
def test_the_event_names_what_the_answer_led_to(qtype: str, records: list[str], lead: str, mode: str) -> None:
    found = play(BLOCKED, "203.0.113.0/24", "2001:db8:66::/48", audit=mode == "audit")
    found.query("a.test", qtype).upstream(answer("a.test", qtype, *records))
    for _ in range(2):  # from the upstream, then from the cache
        event = said(found)
        assert (event["qname"], event["answer"], event["mode"]) == ("a.test", lead, mode)
        found.query("a.test", qtype)


def test_the_event_of_a_blocked_name_has_no_answer() -> None:
    assert "answer" not in said(play(BLOCKED).query(BLOCKED))


def test_without_names_the_answer_stays_out_too() -> None:
    found = play(BLOCKED).query("a.test").upstream(answer("a.test", "A", f"a.test CNAME {BLOCKED}."))
    event = said(found, names=False)
    assert "answer" not in event
    assert "qname" not in event


def test_attempts_with_other_answers_are_other_attempts() -> None:
    """A record never mixes what differs in anything that it says."""
    kinds = []
    for address in ("203.0.113.66", "203.0.113.67", "203.0.113.66"):
        found = play("203.0.113.0/24").query("a.test").upstream(answer("a.test", "A", address))
        attempt = found.settled[0].attempt
        assert attempt is not None
        kinds.append((attempt.kind, attempt.nameless))
    assert kinds[0] == kinds[2] != kinds[1]
    assert kinds[0][1] == kinds[1][1]
