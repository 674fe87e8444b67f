"""A ruleset as the messages that the kernel takes (linux/netfilter/nf_tables.h), and the order in which it takes them.

A message is attributes: length, kind, value, padded to four octets; nested ones carry a flag. Numbers in them are big-endian.

Replacing content. An interval set that is created, filled and used in one transaction serves an empty array for a moment,
so that never happens: `prepare` makes table, class chains and new maps; `fill` gives them their elements, in chunks, while
nothing refers to them; `switch` puts the rules of all chains in force: that one is the change. `remains`, a moment later,
are the old maps: deleting a map deactivates its elements, and a packet that is still on the old rules would find none (seen:
one of 100,000 got through). If anything is refused up to the switch, `additions` go and the old rules were never touched.
"""

import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from embargo.firewall.ruleset import ALIVE_SECONDS, LEARNT, LOG_RATE, SNAPLEN, Spec, judged, mark_chain, value_of
from embargo.firewall.spans import Spans
from embargo.firewall.table import (
    ACCEPT,
    OFFSETS,
    Accept,
    Address,
    Begins,
    Chain,
    Counter,
    Expression,
    Judged,
    Jump,
    Log,
    Mark,
    Meta,
    Owner,
    Port,
    Redirect,
    Refusal,
    Reject,
    Return,
    Rule,
    Ruleset,
    Set,
    mask_of,
    pattern,
)
from embargo.lists.policy import Action

CHUNK = 10_000  # elements a transaction: the commit lock is shared by the whole namespace, a learnt address must not wait

(NEWTABLE, GETTABLE, DELTABLE, NEWCHAIN, GETCHAIN, DELCHAIN, NEWRULE, GETRULE, DELRULE, NEWSET, GETSET, DELSET,
 NEWSETELEM, GETSETELEM, DELSETELEM, _, GETGEN, _, NEWOBJ, GETOBJ, DELOBJ) = range(21)  # fmt: skip
GETFLOWTABLE = 23
CREATE, APPEND = 0x400, 0x800  # NLM_F_CREATE, NLM_F_APPEND
INET = 1  # NFPROTO_INET
INTERVAL_END = 1  # NFT_SET_ELEM_INTERVAL_END
COUNTER = 1  # NFT_OBJECT_COUNTER
DORMANT, OWNER, PERSIST = 1, 2, 4  # NFT_TABLE_F_*
_NESTED = 0x8000

_KEY_TYPES = {"ipv4_addr": (7, 4), "ipv6_addr": (8, 16), "mark": (19, 4), "ifname": (41, 16)}
_SET_INTERVAL, _SET_MAP, _SET_TIMEOUT = 4, 8, 16
_DATA_VERDICT = 0xFFFFFF00
_ACCEPT, _JUMP, _RETURN = 1, -3, -5
_CT_MARK = 3
_SKUID = 10
_INNER = 3  # NFT_PAYLOAD_INNER_HEADER: what a TCP segment carries
_HOOKS = {"prerouting": 0, "input": 1, "forward": 2, "output": 3, "postrouting": 4}
_META_KEYS = {"iifname": 6, "oifname": 7, "nfproto": 15, "l4proto": 16}
_META_VALUES = {"ipv4": b"\x02", "ipv6": b"\x0a", "tcp": b"\x06", "udp": b"\x11", "icmp": b"\1", "icmpv6": b"\x3a"}
_REJECTS = {"reset": (1, 0), "admin": (2, 3), "port": (2, 1)}


def attribute(kind: int, data: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(data), kind) + data + bytes(-len(data) % 4)


def nest(kind: int, *parts: bytes) -> bytes:
    return attribute(kind | _NESTED, b"".join(parts))


def u32(kind: int, value: int) -> bytes:
    return attribute(kind, struct.pack("!I", value & 0xFFFFFFFF))


def u64(kind: int, value: int) -> bytes:
    return attribute(kind, struct.pack("!Q", value))


def text(kind: int, value: str) -> bytes:
    return attribute(kind, value.encode() + b"\0")


class Message(NamedTuple):
    """One message of a batch and what it is about, for errors."""

    kind: int
    flags: int
    payload: bytes
    about: str


def _verdict(code: int, chain: str = "") -> bytes:
    return nest(2, u32(1, code), text(2, chain) if chain else b"")


def _value(data: bytes) -> bytes:
    return attribute(1, data)


# ── expressions ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def _expression(name: str, *attributes: bytes) -> bytes:
    return nest(1, text(1, name), nest(2, *attributes))


def _compare(data: bytes, *, equal: bool = True) -> bytes:
    return _expression("cmp", u32(1, 1), u32(2, 0 if equal else 1), nest(3, _value(data)))


def _masked(mask: bytes, flip: bytes = b"") -> bytes:
    flip = flip or bytes(len(mask))
    return _expression("bitwise", u32(1, 1), u32(2, 1), u32(3, len(mask)), nest(4, _value(mask)), nest(5, _value(flip)))


def _lookup(set_: str, *, vmap: bool = False) -> bytes:
    return _expression("lookup", text(1, set_), u32(2, 1), u32(3, 0) if vmap else b"")


def _payload(base: int, offset: int, length: int) -> bytes:
    return _expression("payload", u32(1, 1), u32(2, base), u32(3, offset), u32(4, length))


def _meta(key: str) -> bytes:
    return _expression("meta", u32(2, _META_KEYS[key]), u32(1, 1))


def encode_expression(expression: Expression) -> bytes:
    """An expression of a rule as the kernel's list elements (linux/netfilter/nf_tables.h)."""
    match expression:
        case Meta(key, value):
            test = _lookup(value[1:]) if value.startswith("@") else _compare(_META_VALUES[value])
            return _meta(key) + test
        case Address(6, side, set_, vmap, inside, prefix) if inside:  # its family is known where it stands
            masked = _masked(mask_of(4, prefix)) if prefix else b""
            return _payload(1, OFFSETS[6, side] + inside, 4) + masked + _lookup(set_, vmap=vmap)
        case Address(family, side, set_, vmap, _, prefix):
            width = 4 if family == 4 else 16
            family_test = _meta("nfproto") + _compare(_META_VALUES[f"ipv{family}"])
            masked = _masked(mask_of(family, prefix)) if prefix else b""
            return family_test + _payload(1, OFFSETS[family, side], width) + masked + _lookup(set_, vmap=vmap)
        case Port(proto, port, side):
            protocol = _meta("l4proto") + _compare(_META_VALUES[proto])
            return protocol + _payload(2, 2 * (side == "dport"), 2) + _compare(port.to_bytes(2))
        case Owner(uid):
            return _expression("meta", u32(2, _SKUID), u32(1, 1)) + _compare(struct.pack("=I", uid))
        case Begins(octets):
            return b"".join(
                _payload(_INNER, at, len(part)) + (_masked(mask) if mask else b"") + _compare(part)
                for at, part, mask in pattern(octets)
            )
        case Judged(mask, set_):
            load = _expression("ct", u32(1, 1), u32(2, _CT_MARK))
            return load + _masked(struct.pack("=I", mask)) + _lookup(set_, vmap=True)
        case Mark(mask, value):
            change = _masked(struct.pack("=I", ~mask & 0xFFFFFFFF), struct.pack("=I", value))
            return _expression("ct", u32(1, 1), u32(2, _CT_MARK)) + change + _expression("ct", u32(2, _CT_MARK), u32(4, 1))
        case Counter(name):
            return _expression("objref", u32(1, 1), text(2, name))
        case Log(prefix, group):
            limit = _expression("limit", u64(1, LOG_RATE), u64(2, 1), u32(3, LOG_RATE), u32(4, 0))
            number, threshold = struct.pack("!H", group), struct.pack("!H", 32)
            return limit + _expression("log", attribute(1, number), text(2, prefix), u32(3, SNAPLEN), attribute(4, threshold))
        case Reject(kind):
            type_, code = _REJECTS[kind]
            return _expression("reject", u32(1, type_), attribute(2, bytes([code])))
        case Refusal("tcp"):  # its flags, of which RST
            flags = _meta("l4proto") + _compare(_META_VALUES["tcp"]) + _payload(2, 13, 1)
            return flags + _masked(b"\x04") + _compare(b"\0", equal=False)
        case Refusal(proto):
            version, unreachable = ("ipv4", b"\3") if proto == "icmp" else ("ipv6", b"\1")
            head = _meta("nfproto") + _compare(_META_VALUES[version]) + _meta("l4proto") + _compare(_META_VALUES[proto])
            return head + _payload(2, 0, 1) + _compare(unreachable)
        case Redirect(port):
            load = _expression("immediate", u32(1, 1), nest(2, _value(port.to_bytes(2))))
            return load + _expression("redir", u32(1, 1), u32(2, 1), u32(3, 2))  # NF_NAT_RANGE_PROTO_SPECIFIED
        case Jump(chain):
            return _expression("immediate", u32(1, 0), nest(2, _verdict(_JUMP, chain)))
        case Return():
            return _expression("immediate", u32(1, 0), nest(2, _verdict(_RETURN)))
        case Accept():
            return _expression("immediate", u32(1, 0), nest(2, _verdict(_ACCEPT)))


# ── messages ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def new_table(table: str, flags: int = 0) -> Message:
    """Without DORMANT: one that somebody put to sleep wakes up."""
    return Message(NEWTABLE, CREATE, text(1, table) + u32(2, flags), f"add table inet {table}")


def delete_table(table: str) -> Message:
    return Message(DELTABLE, 0, text(1, table), f"delete table inet {table}")


def new_counter(table: str, name: str) -> Message:
    payload = text(1, table) + text(2, name) + u32(3, COUNTER) + nest(4)
    return Message(NEWOBJ, CREATE, payload, f"add counter {name}")


def delete_counter(table: str, name: str) -> Message:
    return Message(DELOBJ, 0, text(1, table) + text(2, name) + u32(3, COUNTER), f"delete counter {name}")


def new_chain(table: str, chain: Chain) -> Message:
    payload = text(1, table) + text(3, chain.name)
    if chain.hook:
        payload += nest(4, u32(1, _HOOKS[chain.hook.name]), u32(2, chain.hook.priority))
        payload += u32(5, 1) + text(7, chain.hook.kind)
    return Message(NEWCHAIN, CREATE, payload, f"add chain {chain.name}")


def delete_chain(table: str, name: str) -> Message:
    return Message(DELCHAIN, 0, text(1, table) + text(3, name), f"delete chain {name}")


def flush_chain(table: str, name: str) -> Message:
    return Message(DELRULE, 0, text(1, table) + text(2, name), f"flush chain {name}")


def new_rule(table: str, chain: str, rule: Rule) -> Message:
    payload = text(1, table) + text(2, chain) + nest(4, *map(encode_expression, rule.expressions))
    if rule.comment:
        comment = rule.comment.encode()[:120] + b"\0"
        payload += attribute(7, bytes([0, len(comment)]) + comment)  # NFTNL_UDATA_RULE_COMMENT
    return Message(NEWRULE, CREATE | APPEND, payload, f"add rule {chain}")


def new_set(table: str, each: Set, number: int) -> Message:
    type_, length = _KEY_TYPES[each.type]
    flags = _SET_INTERVAL * each.interval | _SET_MAP * each.vmap | _SET_TIMEOUT * each.timeout
    payload = text(1, table) + text(2, each.name) + u32(3, flags) + u32(4, type_) + u32(5, length) + u32(10, number)
    if each.vmap:
        payload += u32(6, _DATA_VERDICT) + u32(7, 16)
    if not each.interval and not each.timeout:
        # sized: a quarter of the load time; and one may come before another has gone
        payload += nest(9, u32(1, each.size + 1))
    if each.type in ("ifname", "mark"):
        payload += attribute(13, struct.pack("=BBI", 0, 4, 1))  # NFTNL_UDATA_SET_KEYBYTEORDER: host, so that nft lists names
    return Message(NEWSET, CREATE, payload, f"add set {each.name}")


def delete_set(table: str, name: str) -> Message:
    return Message(DELSET, 0, text(1, table) + text(2, name), f"delete set {name}")


def flush_set(table: str, name: str) -> Message:
    return Message(DELSETELEM, 0, text(1, table) + text(2, name), f"flush set {name}")


_MAX_NEST = 60_000  # octets; the length of a nested attribute is 16 bits


def _element_messages(table: str, name: str, kind: int, elements: Iterable[bytes]) -> Iterator[Message]:
    """Messages of as many list elements as fit in one."""
    parts: list[bytes] = []
    size = 0
    for element in elements:
        if size + len(element) > _MAX_NEST:
            yield _elements(table, name, kind, b"".join(parts))
            parts, size = [], 0
        parts.append(element)
        size += len(element)
    if parts:
        yield _elements(table, name, kind, b"".join(parts))


def _elements(table: str, name: str, kind: int, listed: bytes) -> Message:
    return Message(kind, CREATE, text(1, table) + text(2, name) + nest(3, listed), f"elements of {name}")


class Shape(NamedTuple):
    """What is to be found of a ruleset in the kernel, without its elements, of which there may be a million."""

    table: str
    rules: dict[str, int]  # by chain
    items: dict[str, int]  # by set, those that nobody adds to
    learnt: tuple[str, ...]  # sets

    @property
    def elements(self) -> int:
        return sum(self.items.values())


def shape(ruleset: Ruleset) -> Shape:
    return Shape(
        ruleset.table,
        {chain.name: len(chain.rules) for chain in ruleset.chains},
        {each.name: _items_of(each) for each in ruleset.sets if not each.timeout},
        tuple(each.name for each in ruleset.sets if each.learnt),
    )


def _items_of(each: Set) -> int:
    """How many list elements the kernel holds for a set: a range is two, unless it ends at the top."""
    top = (1 << 8 * _KEY_TYPES[each.type][1]) - 1
    ends = sum(len(found.lasts) - (found.lasts[-1] == top) for found in each.spans.values() if found.lasts)
    return each.size + (ends if each.interval else 0)


def _words(table: str, each: Set) -> list[Message]:
    keys = (nest(1, nest(1, _value(word.encode().ljust(16, b"\0")))) for word in each.words)
    return [*_element_messages(table, each.name, NEWSETELEM, keys)]


def _filling(table: str, each: Set, chain: str, found: Spans) -> Iterator[Message]:
    """Elements that lead to one chain: a range is two, its first key, and the key behind its last with a flag; at the top, one.

    All octets but those of the keys are the same from element to element, so the keys are put into copies of one, octet by
    octet of all of them at once, without a step each.
    """
    width = _KEY_TYPES[each.type][1]
    top = (1 << 8 * width) - 1
    element, end = _element(width, chain), _element(width, "", INTERVAL_END) if each.interval else b""
    step = _MAX_NEST // len(element + end)
    # without end: what reaches the top of the space
    count = len(found.firsts) - bool(each.interval and found.lasts and found.lasts[-1] == top)
    for start in range(0, count, step):
        part = slice(start, min(start + step, count))
        keys = [_octets(width, found.firsts[part], host=each.type == "mark")]
        if each.interval:
            keys.append(_octets(width, [last + 1 for last in found.lasts[part]]))
        listed = bytearray((element + end) * (len(keys[0]) // width))
        for place, octets in zip((_KEY, _KEY + len(element)), keys, strict=False):
            for octet in range(width):
                listed[place + octet :: len(element + end)] = octets[octet::width]
        yield _elements(table, each.name, NEWSETELEM, bytes(listed))
    for first in found.firsts[count:]:
        yield _elements(table, each.name, NEWSETELEM, element[:_KEY] + first.to_bytes(width) + element[_KEY + width :])


def _octets(width: int, numbers: Sequence[int], *, host: bool = False) -> bytes:
    """Keys one behind the other, big-endian, or in the host's order."""
    if width == 4:
        return struct.pack(f"{'=' if host else '!'}{len(numbers)}I", *numbers)
    return b"".join([number.to_bytes(width) for number in numbers])


_KEY = 12  # octets of a list element before its key


def _element(width: int, chain: str, flags: int = 0) -> bytes:
    """A list element with zeros for its key."""
    verdict = nest(2, _verdict(_JUMP, chain) if chain != ACCEPT else _verdict(_ACCEPT)) if chain else b""
    return nest(1, nest(1, _value(bytes(width))), verdict, u32(3, flags) if flags else b"")


def timed_elements(table: str, name: str, keys: Iterable[tuple[bytes, int]]) -> list[Message]:
    """Elements of a timeout set: (key, seconds). Both times are given, since equal timeouts alone renew nothing."""
    encoded = (nest(1, nest(1, _value(key)), u64(4, seconds * 1000), u64(5, seconds * 1000)) for key, seconds in keys)
    return list(_element_messages(table, name, NEWSETELEM, encoded))


def learnt_elements(generation: int, table: str, learnt: Iterable[tuple[bytes, Action, int]]) -> list[Message]:
    """Learnt addresses in the sets of a generation: (address, what is done about it, seconds)."""
    found: dict[str, list[tuple[bytes, int]]] = {}
    for address, action, seconds in learnt:
        name = f"{LEARNT[action].set_}{4 if len(address) == 4 else 6}_{generation}"
        found.setdefault(name, []).append((address, seconds))
    return [message for name, keys in found.items() for message in timed_elements(table, name, keys)]


def delete_elements(table: str, name: str, keys: Iterable[bytes]) -> list[Message]:
    """One that is not there (any more) fails the transaction."""
    return list(_element_messages(table, name, DELSETELEM, (nest(1, nest(1, _value(key))) for key in keys)))


def judge_again(table: str, old: Spec, new: Spec) -> Iterator[Message]:
    """Another judgement in force: flows that were let through by the old one meet all rules once more."""
    name = f"judged_{new.generation}"
    now, before = (value_of(each.judgement, each.ct_mark) for each in (new, old))
    for accept, found in judged(now).items():
        yield from _filling(table, Set(name, "mark", vmap=True), accept, found)
    yield from delete_elements(table, name, (struct.pack("=I", before),))
    chain = mark_chain(new)
    yield flush_chain(table, chain.name)
    yield from (new_rule(table, chain.name, rule) for rule in chain.rules)


def alive(table: str, lan: Iterable[str], seconds: int = ALIVE_SECONDS) -> list[Message]:
    """The interfaces whose clients are answered, for so long."""
    return timed_elements(table, "alive", [(name.encode().ljust(16, b"\0"), seconds) for name in lan])


# ── the way of a change ──────────────────────────────────────────────────────────────────────────────────────────────────


class Holding(NamedTuple):
    """What a table holds, by name."""

    table: bool
    sets: Sequence[str]
    chains: Mapping[str, bool]  # whether a hook leads there
    counters: Sequence[str]


NOTHING = Holding(False, (), {}, ())


def additions(table: str, old: Holding, now: Holding) -> Iterator[Message]:
    """Away with what came since."""
    if not old.table:
        if now.table:
            yield delete_table(table)
        return
    chains = [name for name in now.chains if name not in old.chains]
    yield from (delete_set(table, name) for name in now.sets if name not in old.sets)
    yield from (flush_chain(table, name) for name in chains)
    yield from (delete_chain(table, name) for name in chains)
    yield from (delete_counter(table, name) for name in now.counters if name not in old.counters)


def prepare(ruleset: Ruleset, old: Holding, flags: int = 0) -> Iterator[Message]:
    """Everything that can stand there before it is used: table, counters, empty sets, the new chains that these lead to."""
    table = ruleset.table
    yield new_table(table, flags)
    for name in ruleset.counters:
        yield new_counter(table, name)
    for number, each in enumerate(ruleset.sets, start=1):
        yield new_set(table, each, number)
    led = {chain for each in ruleset.sets for chain in each.spans}
    led |= {
        e.chain for c in ruleset.chains if c.name in led for rule in c.rules for e in rule.expressions if isinstance(e, Jump)
    }
    fresh = [chain for chain in ruleset.chains if chain.name in led and chain.name not in old.chains]
    yield from (new_chain(table, chain) for chain in fresh)
    yield from (new_rule(table, chain.name, rule) for chain in fresh for rule in chain.rules)


def fill(ruleset: Ruleset) -> Iterator[list[Message]]:
    """The elements, so many a transaction."""
    for each in ruleset.sets:
        if each.words:
            yield _words(ruleset.table, each)
        batch: list[Message] = []
        room = CHUNK
        for chain, found in each.spans.items():
            at = 0
            while at < len(found.firsts):
                part = slice(at, at + room)
                taken = Spans(found.firsts[part], found.lasts[part])
                batch += _filling(ruleset.table, each, chain, taken)
                at, room = at + len(taken.firsts), room - len(taken.firsts)
                if not room:
                    yield batch
                    batch, room = [], CHUNK
        if batch:
            yield batch


def switch(ruleset: Ruleset, old: Holding) -> Iterator[Message]:
    """The change: the rules of every chain, and none any more in a hook that the new rules leave alone."""
    table = ruleset.table
    for chain in ruleset.chains:
        yield new_chain(table, chain)
    hooked = [name for name, hook in old.chains.items() if hook]
    for name in dict.fromkeys([*hooked, *(chain.name for chain in ruleset.chains)]):
        yield flush_chain(table, name)
    for chain in ruleset.chains:
        for rule in chain.rules:
            yield new_rule(table, chain.name, rule)


def remains(ruleset: Ruleset, old: Holding) -> Iterator[Message]:
    """What the old rules used and the new ones do not."""
    table = ruleset.table
    sets, chains = {each.name for each in ruleset.sets}, {chain.name for chain in ruleset.chains}
    gone = [name for name in old.chains if name not in chains]
    yield from (flush_chain(table, name) for name in gone)
    yield from (delete_set(table, name) for name in old.sets if name not in sets)
    yield from (delete_chain(table, name) for name in gone)


# ── reading ──────────────────────────────────────────────────────────────────────────────────────────────────────────────


def items(data: bytes) -> Iterator[bytes]:
    """The values of a list, whose attributes are all of one kind."""
    offset = 0
    while offset + 4 <= len(data):
        length = struct.unpack_from("=H", data, offset)[0]
        if length < 4:
            return
        yield data[offset + 4 : offset + length]
        offset += (length + 3) & ~3


def attributes(data: bytes) -> dict[int, bytes]:
    """Kind → value."""
    found = {}
    offset = 0
    while offset + 4 <= len(data):
        length, kind = struct.unpack_from("=HH", data, offset)
        if length < 4:
            break
        found[kind & 0x3FFF] = data[offset + 4 : offset + length]
        offset += (length + 3) & ~3
    return found


def string(data: bytes) -> str:
    return data.rstrip(b"\0").decode()
