"""The short way: what it answers, what it leaves to the engine, what it remembers. That both agree is a property test's."""

from typing import Any

import dns.flags
import dns.message
import pytest

from embargo import names
from embargo.dns import message
from embargo.dns.cache import SCREEN_ALWAYS, Cache, CachedAnswer
from embargo.dns.fastpath import MEMO_HALF, Known, Memo
from embargo.dns.judgement import Attempt, BlockMode, Rules
from embargo.dns.message import Lead
from support import shortcut
from support.playbook import CLIENT, NULL, NXDOMAIN, compiled, query, rules

BLOCKED = "alipay.example"
NOW = 1000.0


CACHE = Cache()


def known(packet: bytes, judgement: Rules, client: str = CLIENT) -> Known:
    found = shortcut.answer(packet, client, judgement, CACHE, NOW)
    assert found is not None
    return found


def blocked(packet: bytes, judgement: Rules, client: str = CLIENT) -> Attempt:
    attempt = known(packet, judgement, client).attempt
    assert attempt is not None
    return attempt


def declines(packet: bytes, judgement: Rules | None = None, client: str = CLIENT) -> bool:
    return shortcut.answer(packet, client, judgement or rules(BLOCKED), CACHE, NOW) is None


def changed(packet: bytes, at: int, octets: bytes) -> bytes:
    return packet[:at] + octets + packet[at + len(octets) :]


# ── what it answers ──────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("edns", [True, False])
@pytest.mark.parametrize("do", [True, False])
@pytest.mark.parametrize("flags", [0, dns.flags.RD, dns.flags.RD | dns.flags.CD, dns.flags.AD])
@pytest.mark.parametrize("name", [BLOCKED, "a.b.ALIPAY.example", "a" * 63 + "." + BLOCKED])
def test_a_blocked_name_is_answered(edns: bool, do: bool, flags: int, name: str) -> None:
    packet = query(name, edns=edns, do=edns and do, flags=flags)
    judgement = rules(BLOCKED)
    reply = dns.message.from_wire(known(packet, judgement).reply(packet[:2]))
    found = blocked(packet, judgement)
    assert reply.rcode() == 3
    assert dns.message.from_wire(packet).is_response(reply)
    assert (found.qname, found.qtype, found.action, found.audit) == (names.from_text(name), message.A, "nxdomain", False)


def test_options_of_a_client_are_no_hindrance() -> None:
    packet = query(BLOCKED)
    packet = packet[:-2] + b"\0\x0c\0\x0a\0\x08" + bytes(8)
    assert blocked(packet, rules(BLOCKED)).decision is not None


# ── what it declines ─────────────────────────────────────────────────────────────────────────────────────────────────────

PACKET = query(BLOCKED)
OPT = len(PACKET) - 11
DECLINED = {
    "a response": changed(PACKET, 2, b"\x81"),
    "another opcode": changed(PACKET, 2, b"\x09"),
    "AA": changed(PACKET, 2, b"\x05"),
    "TC": changed(PACKET, 2, b"\x03"),
    "Z": changed(PACKET, 3, b"\x40"),
    "RA": changed(PACKET, 3, b"\x80"),
    "an rcode": changed(PACKET, 3, b"\x01"),
    "two questions": changed(PACKET, 4, b"\0\2"),
    "an answer": changed(PACKET, 6, b"\0\1"),
    "an authority": changed(PACKET, 8, b"\0\1"),
    "two additional records": changed(PACKET, 10, b"\0\2"),
    "an OPT that is not announced": changed(PACKET, 10, b"\0\0"),
    "an OPT that is not there": changed(query(BLOCKED, edns=False), 10, b"\0\1"),
    "a pointer": changed(PACKET, 12, b"\xc0\x0c"),
    "a label type of the past": changed(PACKET, 12, b"\x40"),
    "a name that does not end": PACKET[:14],
    "class CH": changed(PACKET, OPT - 2, b"\0\3"),
    "an OPT with a name": PACKET[:OPT] + b"\1x" + PACKET[OPT:],
    "another record than OPT": changed(PACKET, OPT + 1, b"\0\1"),
    "an extended rcode": changed(PACKET, OPT + 5, b"\1"),
    "EDNS version 1": changed(PACKET, OPT + 6, b"\1"),
    "an option cut short": changed(PACKET, OPT + 9, b"\0\5") + b"\0\x0a\0\4x",
    "octets behind the OPT": PACKET + b"\0",
    "type 0": changed(PACKET, OPT - 4, b"\0\0"),
    "AXFR": query(BLOCKED, "AXFR"),
    "nobody's name": query("free.test"),
}


@pytest.mark.parametrize("what", DECLINED)
def test_the_unusual_is_left_to_the_engine(what: str) -> None:
    assert declines(DECLINED[what])


@pytest.mark.parametrize("size", range(17))
def test_stumps_are_left_to_the_engine(size: int) -> None:
    assert declines(PACKET[:size])


def test_names_longer_than_a_name_can_be_are_left_to_the_engine() -> None:
    head, tail = b"\0\1\1\0\0\1\0\0\0\0\0\0", names.from_text(BLOCKED)
    labels = (b"\x3f" + b"a" * 63) * 3
    for fill, fits in ((255 - len(labels) - len(tail) - 1, True), (255 - len(labels) - len(tail), False)):
        packet = head + labels + bytes([fill]) + b"b" * fill + tail + b"\0\1\0\1"
        assert declines(packet) != fits


def test_strangers_are_left_to_the_engine_whatever_is_remembered() -> None:
    judgement = rules(BLOCKED)
    blocked(PACKET, judgement)
    assert declines(PACKET, judgement, "203.0.113.9")


@pytest.mark.parametrize("listed", ["localhost", "local", "invalid", "onion", "resolver.arpa"])
def test_special_names_are_left_to_the_engine(listed: str) -> None:
    assert declines(query(f"x.{listed}"), rules(listed))


def test_audited_and_allowed_names_are_left_to_the_engine() -> None:
    assert declines(PACKET, rules(BLOCKED, audit=True))
    assert declines(PACKET, rules(BLOCKED, allow=BLOCKED))


def test_a_block_that_does_not_fit_is_left_to_the_engine() -> None:
    long = ".".join(["a" * 63, "b" * 63, "c" * 63, BLOCKED])
    assert declines(query(BLOCKED, edns=False), rules(BLOCKED, mode=BlockMode("address", 10, (b"\1\2\3\4",) * 60)))
    assert declines(query(long, payload=512), rules(long))
    assert not declines(query(long, payload=1232), rules(long))


# ── what it remembers ────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_same_question_is_answered_from_memory_whoever_asks_and_whatever_the_id() -> None:
    judgement = rules(BLOCKED)
    first = blocked(query(BLOCKED, ident=1), judgement)
    assert blocked(query(BLOCKED, ident=2), judgement, "192.0.2.99") is first
    other = blocked(query("Alipay.example", ident=1), judgement)
    assert other is not first
    assert other.kind == first.kind, "one kind of attempt all the same"


def test_questions_with_options_are_not_remembered() -> None:
    """A cookie differs every time (RFC 7873): it would only push out the others."""
    judgement = rules(BLOCKED)
    packet = changed(PACKET, OPT + 9, b"\0\x0c") + b"\0\x0a\0\x08" + bytes(8)
    assert blocked(packet, judgement) is not blocked(packet, judgement)


def test_memory_is_bounded_and_keeps_what_is_asked_for() -> None:
    judgement, memo = rules(BLOCKED), Memo()
    reply = known(PACKET, judgement)
    for number in range(5 * MEMO_HALF):
        memo.put(number.to_bytes(4), reply)
        if number % 1000 == 0:
            memo.put(b"hot", reply) if number == 0 else None
            assert memo.get(b"hot") is reply
        assert len(memo) <= 2 * MEMO_HALF
    assert memo.get((0).to_bytes(4)) is None


# ── what it tells of a block ────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(("mode", "action"), [(NXDOMAIN, "nxdomain"), (NULL, "null"), (BlockMode("refused", 1), "refused")])
def test_an_action_is_the_block_mode_but_for_canary_and_relay_names(mode: BlockMode, action: str) -> None:
    judgement = rules(BLOCKED, mode=mode)
    assert blocked(PACKET, judgement).action == action
    assert blocked(query("mask.icloud.com"), judgement).action == "nxdomain"


def test_attempts_are_equal_in_what_an_event_tells() -> None:
    octets, _ = compiled(BLOCKED)
    assert octets
    first, second = rules(BLOCKED, number=1), rules(BLOCKED, number=2)
    kinds = {
        blocked(query(name, qtype), judgement).kind
        for name in (BLOCKED, "www.alipay.example")
        for qtype in ("A", "AAAA")
        for judgement in (first, second)
    }
    assert len(kinds) == 8
    (decision,) = first.image.lookup(names.from_text(BLOCKED))
    told = Attempt(first, names.from_text(BLOCKED), 1, decision, "pass", True)
    assert told.kind != blocked(PACKET, first).kind
    assert Attempt(first, names.from_text(BLOCKED), 1, None, "pass").kind != told.kind


# ── what it has of the cache ─────────────────────────────────────────────────────────────────────────────────────────────


def cached(judged: int, rcode: int = 0, **parts: Any) -> Cache:
    cache = Cache()
    record = b"\xc0\x0c\0\1\0\1\0\0\0\x64\0\4\xc0\0\2\1"
    found = message.Answer(rcode, (1, 0, 0), record, ((6, 100),), message.AA, 100)._replace(**parts)
    cache.put(message.parse_query(query("free.test", edns=False)).key, found, NOW, judged)
    return cache


def test_what_this_judgement_has_passed_is_given_out_again() -> None:
    judgement, cache = rules(BLOCKED), cached(judged=1)
    packet = query("FREE.test", flags=dns.flags.RD)
    found = shortcut.answer(packet, CLIENT, judgement, cache, NOW + 30)
    assert found is not None
    assert (found.until, found.attempt) == (NOW + 31, None)
    reply = dns.message.from_wire(found.reply(packet[:2]))
    assert (reply.id, reply.answer[0].ttl, str(reply.question[0].name)) == (4711, 70, "FREE.test.")
    assert reply.flags == dns.flags.QR | dns.flags.RD | dns.flags.RA
    assert cache.hits == 1, "the compiled twin counts its own"


def test_a_remembered_answer_ages_and_ends_with_its_entry() -> None:
    judgement, cache = rules(BLOCKED), cached(judged=1)
    for second, ttl in ((0.0, 100), (0.9, 100), (1.0, 99), (98.9, 2), (99.5, 1)):
        found = shortcut.answer(query("free.test"), CLIENT, judgement, cache, NOW + second)
        assert found is not None
        assert dns.message.from_wire(found.reply(b"\0\0")).answer[0].ttl == ttl
    assert shortcut.answer(query("free.test"), CLIENT, judgement, cache, NOW + 100) is None


def test_a_remembered_answer_counts_as_asked_for() -> None:
    judgement, cache = rules(BLOCKED), cached(judged=1)
    entry = cache.get(message.parse_query(query("free.test", edns=False)).key, NOW)
    assert entry is not None
    for _ in range(2):
        entry.used = False
        assert shortcut.answer(query("free.test"), CLIENT, judgement, cache, NOW) is not None
        assert entry.used


def test_what_no_judgement_passes_whole_is_left_to_the_engine() -> None:
    assert shortcut.answer(query("free.test"), CLIENT, rules(BLOCKED), cached(SCREEN_ALWAYS), NOW) is None


def test_what_an_earlier_judgement_passed_is_judged_again() -> None:
    assert shortcut.answer(query("free.test"), CLIENT, rules(BLOCKED), cached(2), NOW) is not None
    known = shortcut.answer(query("free.test"), CLIENT, rules("test", mode=BlockMode("nodata", 1)), cached(2), NOW)
    assert known is not None
    assert known.attempt is not None


@pytest.mark.parametrize("claimed", ["led.test", "also.test", "203.0.113.0/24"])
@pytest.mark.parametrize("extra", [False, True])
def test_what_leads_to_a_claimed_name_or_address_is_left_to_the_engine(claimed: str, extra: bool) -> None:
    def judged_again(*entries: str) -> CachedAnswer | None:
        leads = (
            Lead(names.from_text("free.test"), (names.from_text("led.test"),), ()),
            Lead(names.from_text("also.test"), (), (b"\xcb\0\x71\7",)),
        )
        cache = cached(2, leads=() if extra else leads, extra_leads=leads if extra else ())
        known = shortcut.answer(query("free.test"), CLIENT, rules(*entries), cache, NOW)
        return known.entry if known else None

    assert judged_again(claimed) is None
    entry = judged_again("other.test")
    assert entry is not None
    assert entry.judged == 1


def test_nothing_is_passed_when_everything_is_to_be_logged() -> None:
    judgement = rules(BLOCKED)
    judgement.log_all = True
    assert shortcut.answer(query("free.test"), CLIENT, judgement, cached(2), NOW) is None


def test_an_answer_that_is_over_is_left_to_the_engine() -> None:
    assert shortcut.answer(query("free.test"), CLIENT, rules(BLOCKED), cached(1), NOW + 100) is None
