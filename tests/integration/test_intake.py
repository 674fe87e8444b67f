"""Both intakes from socket to socket: the same replies, the same event lines, and a judgement that is replaced whole or not."""

import asyncio
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from embargo import accelerator, events, names
from embargo.daemon.process.outbox import Outbox
from embargo.daemon.resolve import intake
from embargo.daemon.resolve.attempts import ASKED_A_TICK, Attempts
from embargo.daemon.resolve.intake import Intake, Listener
from embargo.dns.cache import Cache
from embargo.dns.judgement import BlockMode, Rules
from support import schema, twins
from support.outbox import Kept
from support.playbook import NULL, NXDOMAIN, Play, answer, query, rules

WALL, NOW = 1_700_000_000.25, 1000.0
ESCAPED = r"a\"b\.c.example"
LISTED = ("alipay.example", "=exact.example", ESCAPED, "203.0.113.0/24")


class Gateway:
    """An intake with a socket, and a client of it."""

    def __init__(self, cache: Cache) -> None:
        self.kept = Kept()
        self.attempts = Attempts(cast(Outbox, self.kept))
        self.intake: Any = intake.make(cache, self.attempts)
        listening = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        listening.bind(("127.0.0.1", 0))
        self.client = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.client.connect(listening.getsockname())
        self.client.settimeout(1.0)
        self.listener = Listener(listening)

    def adopt(self, judgement: Rules, *, names: bool = True) -> None:
        self.attempts.adopt(judgement, names=names)
        self.intake.adopt(judgement)

    def asked(self, packet: bytes) -> bytes:
        """The reply to a packet; empty when the fast path declines it."""
        self.client.send(packet)
        drained = self.intake.drain(self.listener, NOW, WALL)
        assert drained.packets == 1
        return b"" if drained.declined else self.client.recv(4096)

    def close(self) -> None:
        self.listener.sock.close()
        self.client.close()


@contextmanager
def gateway(cache: Cache | None = None, *, compiled: bool) -> Iterator[Gateway]:
    """An intake, in the loop that its attempts need."""
    with pytest.MonkeyPatch.context() as patch, asyncio.Runner() as runner:
        if not compiled:
            twins.without(patch)

        async def made() -> Gateway:
            return Gateway(cache or Cache())

        found = runner.run(made())
        assert isinstance(found.intake, Intake) is not compiled
        try:
            yield found
        finally:
            found.close()


def both(judgement: Rules, packets: list[bytes], *, names: bool) -> tuple[tuple[list[bytes], bytes, list[object]], ...]:
    """(replies, event lines, hits by class and names handed over) of the compiled intake and of the one in Python."""
    results = []
    for compiled in (True, False):
        with gateway(compiled=compiled) as one:
            one.adopt(judgement, names=names)
            replies = [one.asked(packet) for packet in packets]
            results.append((replies, one.kept.lines, [*one.attempts.tally, *one.attempts.asked]))
    return tuple(results)


@given(
    st.lists(
        st.builds(
            query, st.sampled_from(("alipay.example", "X.alipay.example", "exact.example", "a.exact.example", f"w.{ESCAPED}",
                "use-application-dns.net", "mask.icloud.com", "free.test", "b" * 63 + ".alipay.example")),
            st.sampled_from(("A", "AAAA", "HTTPS", "TXT", "TYPE65399")), edns=st.booleans(),
        ),
        min_size=1, max_size=6,
    ),
    st.sampled_from((NXDOMAIN, NULL, BlockMode("refused", 5))), st.booleans(), st.booleans(),
)  # fmt: skip
def test_both_write_the_same_lines_by_the_schema(packets: list[bytes], mode: BlockMode, names: bool, audit: bool) -> None:
    judgement = rules(*LISTED, mode=mode, audit=audit, acl="127.0.0.0/8", number=7)
    compiled, python = both(judgement, packets, names=names)
    assert compiled == python
    for line in compiled[1].splitlines(keepends=True):
        event = schema.read(line)
        assert ("qname" in event) is names


@pytest.mark.parametrize("compiled", [True, False])
def test_the_name_of_a_block_by_an_answer_is_handed_over_whole(compiled: bool) -> None:
    """Its kind ends with the text of what the answer led to."""
    judgement = rules(*LISTED, acl="127.0.0.0/8", number=7)
    led = Play(judgement).query("led.test", client="127.0.0.1").upstream(answer("led.test", "A", "203.0.113.66"))
    led.query("led.test", client="127.0.0.1").is_blocked("203.0.113.0/24")
    with gateway(led.engine.cache, compiled=compiled) as one:
        one.adopt(judgement)
        assert one.asked(query("led.test")), "by the fast path"
        assert list(one.attempts.asked) == [names.from_text("led.test")]


def test_a_blocks_line_has_every_key_that_it_can_have() -> None:
    (_, line, _), _ = both(rules(*LISTED, acl="127.0.0.0/8", number=7), [query("www.alipay.example")], names=True)
    assert schema.read(line) == {
        "schema": 1, "ts": "2023-11-14T22:13:20.250000Z", "event": "dns", "client": "127.0.0.1", "qname": "www.alipay.example",
        "qtype": "A", "action": "nxdomain", "mode": "block", "app": "alipay", "function": "payment",
        "list": "alipay/payment.list", "line": 1, "rule": "alipay.example", "generation": 7, "count": 1,
    }  # fmt: skip


@pytest.mark.parametrize("compiled", [True, False])
def test_a_list_with_any_name_is_told_as_json(compiled: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    judgement = rules(*LISTED, acl="127.0.0.0/8")
    odd = judgement.image.sources[0]._replace(path='odd "\n\u20ac.list')
    monkeypatch.setattr(judgement.image, "sources", (odd, *judgement.image.sources[1:]))
    again = Rules(1, 1, judgement.acl, judgement.image, judgement.board, judgement.mode)
    with gateway(compiled=compiled) as one:
        one.adopt(again)
        one.asked(query("alipay.example"))
        assert schema.read(one.kept.lines)["list"] == odd.path


@pytest.fixture
def tenant(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A new key of `dns` events: one row of the schema, and a value in the judgement."""
    at = next(number for number, field in enumerate(events.FIELDS) if field.key == "rule")
    row = events.Field("tenant", "text", "dns", "who the list belongs to")
    monkeypatch.setattr(events, "FIELDS", (*events.FIELDS[:at], row, *events.FIELDS[at:]))
    usual = Rules._constants_of
    monkeypatch.setattr(Rules, "_constants_of", lambda *given: usual(*given) | {"tenant": '"somewhere"'})
    events.keys.cache_clear()
    yield
    monkeypatch.undo()
    events.keys.cache_clear()


def test_a_new_key_is_one_row_and_its_value(tenant: None) -> None:
    compiled, python = both(rules(*LISTED, acl="127.0.0.0/8"), [query("alipay.example")], names=True)
    assert compiled == python
    assert list(schema.read(compiled[1]).items())[-4:-2] == [("tenant", "somewhere"), ("rule", "alipay.example")]


# ── adopting ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def _no_parts(broken: Rules, one: Gateway) -> None:
    broken.parts = lambda: 1 / 0  # type: ignore[method-assign, assignment, return-value] # what fails does not matter


def _no_image(broken: Rules, one: Gateway) -> None:
    del broken.image


def _no_access_list(broken: Rules, one: Gateway) -> None:
    del broken.acl


def _short_tally(broken: Rules, one: Gateway) -> None:
    one.attempts.tally = one.attempts.tally[:1]


def _no_tally(broken: Rules, one: Gateway) -> None:
    one.attempts.tally = None  # type: ignore[assignment] # as above


def _odd_pieces(broken: Rules, one: Gateway) -> None:
    parts = broken.parts()
    broken.parts = lambda: parts._replace(pieces=parts.pieces[:2])  # type: ignore[method-assign] # as above


@pytest.mark.parametrize("broken", [_no_parts, _no_image, _no_access_list, _short_tally, _no_tally, _odd_pieces])
def test_what_cannot_be_adopted_leaves_the_old_judgement_whole(broken: Any) -> None:
    with gateway(compiled=True) as one:
        old = rules("alipay.example", acl="127.0.0.0/8", number=1)
        one.adopt(old)
        first = one.asked(query("alipay.example"))
        tally = one.attempts.tally
        new = rules("free.test", acl="192.0.2.0/24", number=2)
        broken(new, one)
        with pytest.raises((AttributeError, ValueError, TypeError, ZeroDivisionError, IndexError)):
            one.intake.adopt(new)
        assert one.asked(query("alipay.example")) == first != b""
        assert one.asked(query("pay.alipay.example", "AAAA"))
        assert one.asked(query("free.test")) == b""
        assert sum(tally) == 3
        assert {schema.read(line)["generation"] for line in one.kept.lines.splitlines(keepends=True)} == {1}
        one.attempts.tally = tally
        one.adopt(rules("free.test", acl="127.0.0.0/8", number=3))
        assert one.asked(query("free.test"))
        assert one.asked(query("alipay.example")) == b""


def test_nothing_is_taken_before_there_is_a_judgement() -> None:
    native = accelerator.load("intake")
    assert native is not None
    with gateway(compiled=True) as one, pytest.raises(RuntimeError):
        one.intake.drain(one.listener, NOW, WALL)


def test_a_tick_hands_over_a_few_names_and_an_error_does_not_end_the_ticks() -> None:
    many = [names.from_text(f"n{number}.test") for number in range(ASKED_A_TICK + 1)]
    seen: list[list[names.Name]] = []

    def on_asked(asked: list[names.Name]) -> None:
        seen.append(asked)
        raise ValueError("a fault")

    async def run() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda *_: None)
        attempts = Attempts(cast(Outbox, Kept()))
        attempts.on_asked = on_asked
        attempts.asked.update(dict.fromkeys(many))
        async with asyncio.timeout(20):
            while len(seen) < 2:
                await asyncio.sleep(0.01)

    asyncio.run(run())
    assert seen == [many[:ASKED_A_TICK], many[ASKED_A_TICK:]]
