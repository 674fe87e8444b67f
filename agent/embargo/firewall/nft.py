"""A ruleset as the messages that the kernel takes (linux/netfilter/nf_tables.h): tables, chains, rules, sets, elements.

The order in which a change sends them stands in `change`; their octets are put together by `wire`.
"""

import struct
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from embargo.firewall import table
from embargo.firewall.ruleset import ALIVE_SECONDS, LEARNT, LOG_RATE, SNAPLEN
from embargo.firewall.spans import Spans
from embargo.firewall.wire import APPEND, CREATE, attribute, nest, text, u32, u64
from embargo.lists.policy import Action

(NEWTABLE, GETTABLE, DELTABLE, NEWCHAIN, GETCHAIN, DELCHAIN, NEWRULE, GETRULE, DELRULE, NEWSET, GETSET, DELSET,
 NEWSETELEM, GETSETELEM, DELSETELEM, _, GETGEN, _, NEWOBJ, GETOBJ, DELOBJ) = range(21)  # fmt: skip
GETFLOWTABLE = 23
INET = 1  # NFPROTO_INET: tables of both families
INTERVAL_END = 1  # NFT_SET_ELEM_INTERVAL_END
COUNTER = 1  # NFT_OBJECT_COUNTER
DORMANT, OWNER, PERSIST = 1, 2, 4  # NFT_TABLE_F_*

#: (type number of nft(8), octets) of a set's keys
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
_REJECTS = {"reset": (1, 0), "admin": (2, 3), "port": (2, 1)}  # (NFT_REJECT_*, code)


class Message(NamedTuple):
    """One message of a transaction, and in words what it does, for errors."""

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


def encode_expression(expression: table.Expression) -> bytes:
    """An expression of a rule as the kernel's list elements (linux/netfilter/nf_tables.h)."""
    match expression:
        case table.Meta(key, value):
            test = _lookup(value[1:]) if value.startswith("@") else _compare(_META_VALUES[value])
            return _meta(key) + test
        case table.Address(6, side, set_, vmap, inside, prefix) if inside:  # its family is known where it stands
            masked = _masked(table.mask_of(4, prefix)) if prefix else b""
            return _payload(1, table.OFFSETS[6, side] + inside, 4) + masked + _lookup(set_, vmap=vmap)
        case table.Address(family, side, set_, vmap, _, prefix):
            width = 4 if family == 4 else 16
            family_test = _meta("nfproto") + _compare(_META_VALUES[f"ipv{family}"])
            masked = _masked(table.mask_of(family, prefix)) if prefix else b""
            return family_test + _payload(1, table.OFFSETS[family, side], width) + masked + _lookup(set_, vmap=vmap)
        case table.Port(proto, port, side):
            protocol = _meta("l4proto") + _compare(_META_VALUES[proto])
            return protocol + _payload(2, 2 * (side == "dport"), 2) + _compare(port.to_bytes(2))
        case table.Owner(uid):
            return _expression("meta", u32(2, _SKUID), u32(1, 1)) + _compare(struct.pack("=I", uid))
        case table.Begins(octets):
            return b"".join(
                _payload(_INNER, at, len(part)) + (_masked(mask) if mask else b"") + _compare(part)
                for at, part, mask in table.pattern(octets)
            )
        case table.Judged(mask, set_):
            load = _expression("ct", u32(1, 1), u32(2, _CT_MARK))
            return load + _masked(struct.pack("=I", mask)) + _lookup(set_, vmap=True)
        case table.Mark(mask, value):
            change = _masked(struct.pack("=I", ~mask & 0xFFFFFFFF), struct.pack("=I", value))
            return _expression("ct", u32(1, 1), u32(2, _CT_MARK)) + change + _expression("ct", u32(2, _CT_MARK), u32(4, 1))
        case table.Counter(name):
            return _expression("objref", u32(1, 1), text(2, name))
        case table.Log(prefix, group):
            limit = _expression("limit", u64(1, LOG_RATE), u64(2, 1), u32(3, LOG_RATE), u32(4, 0))
            number, threshold = struct.pack("!H", group), struct.pack("!H", 32)
            return limit + _expression("log", attribute(1, number), text(2, prefix), u32(3, SNAPLEN), attribute(4, threshold))
        case table.Reject(kind):
            type_, code = _REJECTS[kind]
            return _expression("reject", u32(1, type_), attribute(2, bytes([code])))
        case table.Refusal("tcp"):  # its flags, of which RST
            flags = _meta("l4proto") + _compare(_META_VALUES["tcp"]) + _payload(2, 13, 1)
            return flags + _masked(b"\x04") + _compare(b"\0", equal=False)
        case table.Refusal(proto):
            version, unreachable = ("ipv4", b"\3") if proto == "icmp" else ("ipv6", b"\1")
            head = _meta("nfproto") + _compare(_META_VALUES[version]) + _meta("l4proto") + _compare(_META_VALUES[proto])
            return head + _payload(2, 0, 1) + _compare(unreachable)
        case table.Redirect(port):
            load = _expression("immediate", u32(1, 1), nest(2, _value(port.to_bytes(2))))
            return load + _expression("redir", u32(1, 1), u32(2, 1), u32(3, 2))  # NF_NAT_RANGE_PROTO_SPECIFIED
        case table.Jump(chain):
            return _expression("immediate", u32(1, 0), nest(2, _verdict(_JUMP, chain)))
        case table.Return():
            return _expression("immediate", u32(1, 0), nest(2, _verdict(_RETURN)))
        case table.Accept():
            return _expression("immediate", u32(1, 0), nest(2, _verdict(_ACCEPT)))


# ── messages ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def new_table(table_name: str, flags: int = 0) -> Message:
    """Make a table, or set the flags of one that exists: without DORMANT, a sleeping table wakes up."""
    return Message(NEWTABLE, CREATE, text(1, table_name) + u32(2, flags), f"add table inet {table_name}")


def delete_table(table_name: str) -> Message:
    """Delete a table with everything in it."""
    return Message(DELTABLE, 0, text(1, table_name), f"delete table inet {table_name}")


def new_counter(table_name: str, name: str) -> Message:
    """Make a counter; one that exists keeps its count."""
    payload = text(1, table_name) + text(2, name) + u32(3, COUNTER) + nest(4)
    return Message(NEWOBJ, CREATE, payload, f"add counter {name}")


def delete_counter(table_name: str, name: str) -> Message:
    """Delete a counter that no rule refers to."""
    return Message(DELOBJ, 0, text(1, table_name) + text(2, name) + u32(3, COUNTER), f"delete counter {name}")


def new_chain(table_name: str, chain: table.Chain) -> Message:
    """Make an empty chain; one that exists keeps its rules."""
    payload = text(1, table_name) + text(3, chain.name)
    if chain.hook:
        payload += nest(4, u32(1, _HOOKS[chain.hook.name]), u32(2, chain.hook.priority))
        payload += u32(5, 1) + text(7, chain.hook.kind)
    return Message(NEWCHAIN, CREATE, payload, f"add chain {chain.name}")


def delete_chain(table_name: str, name: str) -> Message:
    """Delete a chain that is empty and that nothing leads to."""
    return Message(DELCHAIN, 0, text(1, table_name) + text(3, name), f"delete chain {name}")


def flush_chain(table_name: str, name: str) -> Message:
    """Delete the rules of a chain."""
    return Message(DELRULE, 0, text(1, table_name) + text(2, name), f"flush chain {name}")


def new_rule(table_name: str, chain: str, rule: table.Rule) -> Message:
    """Add a rule at the end of a chain."""
    payload = text(1, table_name) + text(2, chain) + nest(4, *map(encode_expression, rule.expressions))
    if rule.comment:
        comment = rule.comment.encode()[:120] + b"\0"
        payload += attribute(7, bytes([0, len(comment)]) + comment)  # NFTNL_UDATA_RULE_COMMENT
    return Message(NEWRULE, CREATE | APPEND, payload, f"add rule {chain}")


def new_set(table_name: str, each: table.Set, number: int) -> Message:
    """Make an empty set. `number`: its own within the transaction."""
    type_, length = _KEY_TYPES[each.type]
    flags = _SET_INTERVAL * each.interval | _SET_MAP * each.vmap | _SET_TIMEOUT * each.timeout
    payload = text(1, table_name) + text(2, each.name) + u32(3, flags) + u32(4, type_) + u32(5, length) + u32(10, number)
    if each.vmap:
        payload += u32(6, _DATA_VERDICT) + u32(7, 16)
    if not each.interval and not each.timeout:
        # sized: a quarter of the load time; and one may come before another has gone
        payload += nest(9, u32(1, each.size + 1))
    if each.type in ("ifname", "mark"):
        payload += attribute(13, struct.pack("=BBI", 0, 4, 1))  # NFTNL_UDATA_SET_KEYBYTEORDER: host, so that nft lists names
    return Message(NEWSET, CREATE, payload, f"add set {each.name}")


def delete_set(table_name: str, name: str) -> Message:
    """Delete a set that no rule refers to."""
    return Message(DELSET, 0, text(1, table_name) + text(2, name), f"delete set {name}")


def flush_set(table_name: str, name: str) -> Message:
    """Delete the elements of a set."""
    return Message(DELSETELEM, 0, text(1, table_name) + text(2, name), f"flush set {name}")


_MAX_NEST = 60_000  # octets of elements in one message: the length of the attribute that holds them has 16 bits


def _element_messages(table_name: str, name: str, kind: int, elements: Iterable[bytes]) -> Iterator[Message]:
    """Messages with these list elements, each with as many as fit in it."""
    parts: list[bytes] = []
    size = 0
    for element in elements:
        if size + len(element) > _MAX_NEST:
            yield _elements(table_name, name, kind, b"".join(parts))
            parts, size = [], 0
        parts.append(element)
        size += len(element)
    if parts:
        yield _elements(table_name, name, kind, b"".join(parts))


def _elements(table_name: str, name: str, kind: int, listed: bytes) -> Message:
    return Message(kind, CREATE, text(1, table_name) + text(2, name) + nest(3, listed), f"elements of {name}")


class Shape(NamedTuple):
    """What to look for in the kernel to see that a ruleset is complete: counts, since it may have a million elements."""

    table: str
    rules: dict[str, int]  # by chain
    items: dict[str, int]  # by set, without sets that change while the ruleset is in force
    learnt: tuple[str, ...]  # sets of learnt addresses

    @property
    def elements(self) -> int:
        """The elements of the set, encoded for the kernel."""
        return sum(self.items.values())


def shape(ruleset: table.Ruleset) -> Shape:
    """The Shape of a ruleset."""
    return Shape(
        ruleset.table,
        {chain.name: len(chain.rules) for chain in ruleset.chains},
        {each.name: _items_of(each) for each in ruleset.sets if not each.timeout},
        tuple(each.name for each in ruleset.sets if each.learnt),
    )


def _items_of(each: table.Set) -> int:
    """How many list elements the kernel holds for a set: a range is two, unless it ends at the top."""
    top = (1 << 8 * _KEY_TYPES[each.type][1]) - 1
    ends = sum(len(ranges.lasts) - (ranges.lasts[-1] == top) for ranges in each.spans.values() if ranges.lasts)
    return each.size + (ends if each.interval else 0)


def words(table_name: str, each: table.Set) -> list[Message]:
    """Messages that fill a set of interface names."""
    keys = (nest(1, nest(1, _value(word.encode().ljust(16, b"\0")))) for word in each.words)
    return [*_element_messages(table_name, each.name, NEWSETELEM, keys)]


def filling(table_name: str, each: table.Set, chain: str, ranges: Spans) -> Iterator[Message]:
    """Messages that put ranges into a set; in a verdict map, they lead to `chain`.

    A range of an interval set is two elements: its first key, and the key behind its last one with a flag; a range up to the
    last address has no second element. Elements differ in the octets of their keys alone. So copies of one element are
    joined, and the keys are written into them one octet position at a time, for all elements at once, by slices.
    """
    width = _KEY_TYPES[each.type][1]
    top = (1 << 8 * width) - 1
    element, end = _element(width, chain), _element(width, "", INTERVAL_END) if each.interval else b""
    step = _MAX_NEST // len(element + end)
    # the last range has no second element when it ends with the last address
    count = len(ranges.firsts) - bool(each.interval and ranges.lasts and ranges.lasts[-1] == top)
    for start in range(0, count, step):
        part = slice(start, min(start + step, count))
        keys = [_octets(width, ranges.firsts[part], host=each.type == "mark")]
        if each.interval:
            keys.append(_octets(width, [last + 1 for last in ranges.lasts[part]]))
        listed = bytearray((element + end) * (len(keys[0]) // width))
        for place, octets in zip((_KEY, _KEY + len(element)), keys, strict=False):
            for octet in range(width):
                listed[place + octet :: len(element + end)] = octets[octet::width]
        yield _elements(table_name, each.name, NEWSETELEM, bytes(listed))
    for first in ranges.firsts[count:]:
        yield _elements(table_name, each.name, NEWSETELEM, element[:_KEY] + first.to_bytes(width) + element[_KEY + width :])


def _octets(width: int, numbers: Sequence[int], *, host: bool = False) -> bytes:
    """Keys joined, big-endian, or (`host`) in this machine's byte order."""
    if width == 4:
        return struct.pack(f"{'=' if host else '!'}{len(numbers)}I", *numbers)
    return b"".join([number.to_bytes(width) for number in numbers])


_KEY = 12  # octets of a list element before its key


def _element(width: int, chain: str, flags: int = 0) -> bytes:
    """A list element whose key is all zeros. `chain`: of a verdict map."""
    verdict = nest(2, _verdict(_JUMP, chain) if chain != table.ACCEPT else _verdict(_ACCEPT)) if chain else b""
    return nest(1, nest(1, _value(bytes(width))), verdict, u32(3, flags) if flags else b"")


def timed_elements(table_name: str, name: str, keys: Iterable[tuple[bytes, int]]) -> list[Message]:
    """Add (key, seconds) to a set with timeouts. The expiration is sent too: an equal timeout alone does not renew it."""
    encoded = (nest(1, nest(1, _value(key)), u64(4, seconds * 1000), u64(5, seconds * 1000)) for key, seconds in keys)
    return list(_element_messages(table_name, name, NEWSETELEM, encoded))


def learnt_elements(generation: int, table_name: str, learnt: Iterable[tuple[bytes, Action, int]]) -> list[Message]:
    """Add learnt addresses to the sets of a generation: (address, what is done about it, seconds)."""
    by_set: dict[str, list[tuple[bytes, int]]] = {}
    for address, action, seconds in learnt:
        name = f"{LEARNT[action].set_}{4 if len(address) == 4 else 6}_{generation}"
        by_set.setdefault(name, []).append((address, seconds))
    return [message for name, keys in by_set.items() for message in timed_elements(table_name, name, keys)]


def delete_elements(table_name: str, name: str, keys: Iterable[bytes]) -> list[Message]:
    """Delete these keys from a set. One that is not in it makes the transaction fail."""
    return list(_element_messages(table_name, name, DELSETELEM, (nest(1, nest(1, _value(key))) for key in keys)))


def alive(table_name: str, lan: Iterable[str], seconds: int = ALIVE_SECONDS) -> list[Message]:
    """Redirect port 53 of clients at these interfaces for so many seconds: resolvers answer them."""
    return timed_elements(table_name, "alive", [(name.encode().ljust(16, b"\0"), seconds) for name in lan])
