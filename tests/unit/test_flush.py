"""Cached answers are forgotten on demand: those for a name and all names below it, failures too."""

import dns.rcode
import pytest

from embargo import names
from embargo.dns import fastpath
from embargo.dns.questions import Forward
from support.playbook import CLIENT, Play, answer, play, query

NAMES = ("a.test", "b.a.test", "xa.test", "test", "a.test.other")


def filled() -> Play:
    found = play()
    for name in NAMES:
        found.query(name).upstream(answer(name, "A", "192.0.2.1"))
        found.query(name, "AAAA").upstream(answer(name, "AAAA", "2001:db8::1"))
    return found


@pytest.mark.parametrize(
    ("name", "gone"),
    [
        ("a.test", {"a.test", "b.a.test"}), ("A.Test", {"a.test", "b.a.test"}), ("b.a.test", {"b.a.test"}),
        ("nothing.test", set()), ("test", {"a.test", "b.a.test", "xa.test", "test"}), (".", set(NAMES)),
    ],
)  # fmt: skip
def test_answers_are_forgotten_by_name(name: str, gone: set[str]) -> None:
    found = filled()
    assert found.engine.flush(names.from_text(name)) == 2 * len(gone)
    for each in NAMES:
        for qtype in ("A", "AAAA"):
            assert isinstance(found.query(each, qtype).outcome, Forward) == (each in gone)


def test_an_expired_answer_is_forgotten_too() -> None:
    found = play().query("a.test").upstream(answer("a.test", "A", "192.0.2.1", ttl=5)).later(60)
    assert found.engine.flush(names.from_text("a.test")) == 1
    found.query("a.test").upstream(answer("a.test", rcode=2)).upstream(answer("a.test", rcode=2))
    found.replies(rcode=dns.rcode.SERVFAIL)


def test_failures_are_forgotten_too() -> None:
    found = play()
    for name in ("a.test", "b.test"):
        found.query(name).upstream(answer(name, rcode=2)).upstream(answer(name, rcode=2)).replies(rcode=dns.rcode.SERVFAIL)
    found.engine.flush(names.from_text("a.test"))
    assert isinstance(found.query("a.test").outcome, Forward)
    found.query("b.test").replies(rcode=dns.rcode.SERVFAIL)


def test_a_new_shortcut_remembers_no_reply() -> None:
    """That is why the shell makes one: the old one may give out what it remembers for a second."""
    found = filled()
    packet = query("a.test")
    old = fastpath.Shortcut(found.engine.rules, found.engine.cache)
    assert old.answer(packet, CLIENT, found.now) is not None
    found.engine.flush(names.ROOT)
    assert fastpath.Shortcut(found.engine.rules, found.engine.cache).answer(packet, CLIENT, found.now) is None
