from embargo.dns.cache import Cache, CachedAnswer
from embargo.dns.judgement import Rules

class Known:
    until: float
    entry: CachedAnswer | None
    kind: bytes | None
    other: bytes | None
    key: bytes | None
    members: bytes | None
    class_: int
    cut: bool
    def reply(self, ident: bytes, now: float) -> bytes: ...

class Shortcut:
    def __init__(self, rules: Rules, cache: Cache, names: bool = True) -> None: ...
    def answer(self, packet: bytes, client: str, now: float, *, udp: bool = True) -> Known | None: ...
