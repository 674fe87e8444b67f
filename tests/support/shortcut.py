"""Both fast paths, held to the same result wherever a test takes the short way."""

from functools import lru_cache

from embargo.dns import fastpath
from embargo.dns.cache import Cache
from embargo.dns.fastpath import Known
from embargo.dns.judgement import Rules
from embargo.native import fastpath as native


@lru_cache(maxsize=16)  # more than the judgements that one test takes turns with
def _shortcuts(rules: Rules, cache: Cache) -> tuple[fastpath.Shortcut, native.Shortcut]:
    return fastpath.Shortcut(rules, cache), native.Shortcut(rules, cache)


def answer(packet: bytes, client: str, rules: Rules, cache: Cache, now: float, *, udp: bool = True) -> Known | None:
    """What `fastpath.Shortcut` answers, after its compiled twin has answered the same. Both remember from call to call."""
    python, twin = _shortcuts(rules, cache)
    compiled, found = twin.answer(packet, client, now, udp=udp), python.answer(packet, client, now, udp=udp)
    assert (compiled is None) == (found is None)
    if compiled is None or found is None:
        return None
    assert compiled.reply(packet[:2], now) == found.reply(packet[:2])
    assert compiled.until >= found.until
    assert compiled.entry is found.entry
    assert compiled.cut == found.cut
    assert compiled.kind == compiled.key == (found.attempt.kind if found.attempt else None)
    assert compiled.other == (found.attempt.other if found.attempt else None)
    assert compiled.members == (found.attempt.members(names=True).encode() if found.attempt else None)
    assert not found.attempt or (found.attempt.decision and compiled.class_ == found.attempt.decision.class_)
    return found
