"""The fast path is a shortcut of the engine: whatever packet, policy, cache and clock, it gives the same octets or declines."""

import dns.exception
import dns.flags
import dns.message
import dns.rcode
import dns.rdatatype
import dns.rrset
from hypothesis import event, given
from hypothesis import strategies as st

from embargo.dns.cache import Cache
from embargo.dns.engine import Engine, Reply
from embargo.dns.judgement import BlockMode, Rules
from embargo.dns.questions import Forward
from embargo.dns.upstream import Server, Upstreams
from embargo.dns.zones import Zones
from support import shortcut
from support.playbook import CLIENT, NULL, NXDOMAIN, answer, query, rules

MODES = (NXDOMAIN, NULL, BlockMode("nodata", 10), BlockMode("refused", 5), BlockMode("address", 7, (b"\1\2\3\4",) * 90, ()))
NAMES = (
    "alipay.example", "www.alipay.example", "WWW.aLiPay.eXample", "exact.example", "a.exact.example", "free.test",
    "Free.TEST", "led.test", "allowed.alipay.example", "use-application-dns.net", "mask.icloud.com", "localhost",
    "x.resolver.arpa", "a.onion", "printer.local", "none.test", "large.test", ".", "b" * 63 + ".alipay.example",
)  # fmt: skip
ENTRIES = ("alipay.example", "=exact.example", "!free.alipay.example", "203.0.113.0/24")
TYPES = (1, 28, 5, 15, 16, 64, 65, 255, 252, 41, 0, 65399)


@st.composite
def packets(draw: st.DrawFn) -> bytes:
    """Queries as programs send them, and what becomes of them on the way."""
    flags = draw(st.sampled_from((0x0100, 0x0000, 0x0110, 0x0120, 0x0130, 0x8100, 0x0900, 0x0500, 0x01C0, 0x0300)))
    name, qtype = draw(st.sampled_from(NAMES)), draw(st.sampled_from(TYPES))
    made = bytearray(query(name, qtype, edns=False, ident=draw(st.integers(0, 65535))))
    made[2:4] = flags.to_bytes(2)
    for _ in range(draw(st.sampled_from((0, 0, 1, 1, 1, 2)))):
        size, version = draw(st.sampled_from((0, 512, 1232, 4096))), draw(st.sampled_from((0, 0, 0, 0, 1)))
        z, options = (
            draw(st.sampled_from((0, 0x8000, 0x4000))),
            draw(st.sampled_from((b"", b"\0\x0a\0\x08abcdefgh", b"\0\x0a\0\x09a"))),
        )
        made += b"\0\0\x29" + size.to_bytes(2) + bytes([0, version]) + z.to_bytes(2) + len(options).to_bytes(2) + options
        made[11] += 1
    if draw(st.integers(0, 4)) == 0:
        for _ in range(draw(st.integers(1, 3))):
            made[draw(st.integers(0, len(made) - 1))] = draw(st.integers(0, 255))
    if draw(st.integers(0, 9)) == 0:
        made = made[: draw(st.integers(0, len(made)))]
    return bytes(made)


def upstream(name: str, qtype: int) -> dns.message.Message:
    made = answer(name, "A", flags=dns.flags.AD | dns.flags.AA)
    made.question = dns.message.make_query(name, dns.rdatatype.RdataType.make(qtype)).question
    if name == "none.test":
        made.set_rcode(dns.rcode.NXDOMAIN)
        made.authority.append(dns.rrset.from_text("test.", 900, "IN", "SOA", "ns.test. mail.test. 1 2 3 4 30"))
    elif name == "large.test":
        made.answer.append(dns.rrset.from_text(name + ".", 300, "IN", "TXT", *(f'"{n:>200}"' for n in range(8))))
    elif name == "led.test":
        made.answer.append(dns.rrset.from_text(name + ".", 300, "IN", "A", "203.0.113.5"))
    else:
        made.answer.append(dns.rrset.from_text(name + ".", 100, "IN", "A", "192.0.2.80", "192.0.2.81", "192.0.2.82"))
    return made


def fill(engine: Engine, now: float) -> None:
    """Ask for everything once, so that the cache holds what the upstream says."""
    for name in ("free.test", "led.test", "allowed.alipay.example", "none.test", "large.test", "localhost"):
        for qtype in (1, 16):
            outcome = engine.handle(query(name, qtype), CLIENT, None, now, udp=False)
            if isinstance(outcome, Forward):
                engine.complete(outcome.token, upstream(name, qtype).to_wire(max_size=65535), now)


@given(
    st.lists(st.tuples(packets(), st.booleans()), min_size=1, max_size=6), st.sampled_from(MODES), st.booleans(), st.booleans(),
    st.floats(0, 200), st.sampled_from((CLIENT, "203.0.113.9")), st.booleans(), st.sampled_from(("udp", "tls")),
)  # fmt: skip
def test_the_fast_path_gives_the_engines_octets_or_declines(
    asked: list[tuple[bytes, bool]],
    mode: BlockMode,
    audit: bool,
    swap: bool,
    later: float,
    client: str,
    again: bool,
    scheme: str,
) -> None:
    def judgement(number: int) -> Rules:
        return rules(*ENTRIES, allow="allowed.alipay.example", mode=mode, audit=audit, number=number)

    cache = Cache()
    engine = Engine(judgement(1), Zones(Upstreams((Server("192.0.2.53", 53, scheme),))), cache)
    fill(engine, 1000.0)
    if swap:  # cached answers were judged by another policy then
        engine.adopt(judgement(2))
    now = 1000.0 + later
    for packet, udp in asked * (1 + again):  # the second time the memo knows it
        fast = shortcut.answer(packet, client, engine.rules, cache, now, udp=udp)
        slow = engine.handle(packet, client, None, now, udp=udp)
        if fast is None:
            event("declined")
            continue
        assert isinstance(slow, Reply), f"the engine does not answer: {slow}"
        event("blocked" if fast.attempt else "cut" if fast.cut else "cached")
        assert fast.reply(packet[:2]) == slow.wire
        assert (fast.attempt.kind if fast.attempt else None) == (slow.attempt.kind if slow.attempt else None)
