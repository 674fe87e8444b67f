"""What the guardian says to the kernel: our writer for nftables, on a plain NETLINK_NETFILTER socket.

A transaction is one batch in one send: BEGIN, messages, END; the kernel takes all of it or nothing. Only the last message
asks for an acknowledgement (asking on each overruns the receive buffer although the batch was applied); errors come for
every message that failed, with its sequence number, which leads back to the object it was about.

Replacing content. An interval set that is created, filled and used in one transaction serves an empty array for a moment,
so `replace` never does that: tables, class chains and new maps first; their elements next, in chunks, while nothing refers
to them; then one transaction that switches the rules of all chains: that one is the change. The old maps go a moment later:
deleting a map deactivates its elements, and a packet that is still on the old rules would find none (seen: one of 100,000
got through). If anything fails up to the switch, the new maps go and the old rules were never touched.
"""

import contextlib
import errno
import os
import socket
import struct
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from embargo.errors import FirewallError
from embargo.ruleset import (
    ALIVE_SECONDS,
    LOG_RATE,
    SNAPLEN,
    Address,
    Chain,
    Counter,
    Element,
    Expression,
    Jump,
    Log,
    Meta,
    Port,
    Redirect,
    Refusal,
    Reject,
    Return,
    Rule,
    Ruleset,
    Set,
)  # fmt: skip

CHUNK = 10_000  # elements a transaction: the commit lock is shared by the whole namespace, a learnt address must not wait
GRACE = 0.02  # seconds after which no packet is on the old rules any more; one spends microseconds there
_ACK_TIMEOUT = 30.0  # seconds; a million elements take six
_DATAGRAM = 1 << 16  # octets; the kernel's are of 32 KiB at most
_DUMP_TRIES = 20  # others may commit while we list; a list of names takes 80 microseconds

_NETLINK_NETFILTER = 12
_SO_SNDBUFFORCE, _SO_RCVBUFFORCE = 32, 33
_SOL_NETLINK, _NETLINK_CAP_ACK, _NETLINK_EXT_ACK = 270, 10, 11
_NLM_F_REQUEST, _NLM_F_ACK, _NLM_F_DUMP_INTR, _NLM_F_DUMP, _NLM_F_CREATE, _NLM_F_APPEND = 1, 4, 0x10, 0x300, 0x400, 0x800
_NLMSG_ERROR, _NLMSG_DONE = 2, 3
_NFNL_BEGIN, _NFNL_END, _NFTABLES = 0x10, 0x11, 10
_INET = 1  # NFPROTO_INET
(_NEWTABLE, _GETTABLE, _DELTABLE, _NEWCHAIN, _GETCHAIN, _DELCHAIN, _NEWRULE, _, _DELRULE, _NEWSET, _GETSET, _DELSET,
 _NEWSETELEM, _GETSETELEM, _DELSETELEM, _, _GETGEN, _, _NEWOBJ, _GETOBJ, _DELOBJ) = range(21)  # fmt: skip
_NESTED = 0x8000

_HEADER = struct.Struct("=IHHII")  # nlmsghdr
_KEY_TYPES = {"ipv4_addr": (7, 4), "ipv6_addr": (8, 16), "inet_proto": (12, 1), "ifname": (41, 16)}
_SET_INTERVAL, _SET_MAP, _SET_TIMEOUT = 4, 8, 16
_DATA_VERDICT = 0xFFFFFF00
_ELEM_INTERVAL_END = 1
_JUMP, _RETURN = -3, -5
_HOOKS = {"prerouting": 0, "input": 1, "forward": 2, "output": 3, "postrouting": 4}
_META_KEYS = {"iifname": 6, "oifname": 7, "nfproto": 15, "l4proto": 16}
_META_VALUES = {"ipv4": b"\x02", "ipv6": b"\x0a", "tcp": b"\x06", "udp": b"\x11", "icmp": b"\1", "icmpv6": b"\x3a"}
_REJECTS = {"reset": (1, 0), "admin": (2, 3), "port": (2, 1)}


def _attr(kind: int, data: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(data), kind) + data + bytes(-len(data) % 4)


def _nest(kind: int, *parts: bytes) -> bytes:
    return _attr(kind | _NESTED, b"".join(parts))


def _u32(kind: int, value: int) -> bytes:
    return _attr(kind, struct.pack("!I", value & 0xFFFFFFFF))


def _u64(kind: int, value: int) -> bytes:
    return _attr(kind, struct.pack("!Q", value))


def _text(kind: int, value: str) -> bytes:
    return _attr(kind, value.encode() + b"\0")


class Message(NamedTuple):
    """One message of a batch and what it is about, for errors."""

    kind: int
    flags: int
    payload: bytes
    about: str


def _verdict(code: int, chain: str = "") -> bytes:
    return _nest(2, _u32(1, code), _text(2, chain) if chain else b"")


def _value(data: bytes) -> bytes:
    return _attr(1, data)


# ── expressions ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def _expression(name: str, *attributes: bytes) -> bytes:
    return _nest(1, _text(1, name), _nest(2, *attributes))


def _compare(data: bytes, *, equal: bool = True) -> bytes:
    return _expression("cmp", _u32(1, 1), _u32(2, 0 if equal else 1), _nest(3, _value(data)))


def _masked(mask: bytes) -> bytes:
    zero = bytes(len(mask))
    return _expression("bitwise", _u32(1, 1), _u32(2, 1), _u32(3, len(mask)), _nest(4, _value(mask)), _nest(5, _value(zero)))


def _lookup(set_: str, *, vmap: bool = False) -> bytes:
    return _expression("lookup", _text(1, set_), _u32(2, 1), _u32(3, 0) if vmap else b"")


def _payload(base: int, offset: int, length: int) -> bytes:
    return _expression("payload", _u32(1, 1), _u32(2, base), _u32(3, offset), _u32(4, length))


def _meta(key: str) -> bytes:
    return _expression("meta", _u32(2, _META_KEYS[key]), _u32(1, 1))


def encode_expression(expression: Expression) -> bytes:
    """An expression of a rule as the kernel's list elements (linux/netfilter/nf_tables.h)."""
    match expression:
        case Meta(key, value):
            test = _lookup(value[1:]) if value.startswith("@") else _compare(_META_VALUES[value])
            return _meta(key) + test
        case Address(family, side, set_, vmap):
            width = 4 if family == 4 else 16
            offset = {(4, "saddr"): 12, (4, "daddr"): 16, (6, "saddr"): 8, (6, "daddr"): 24}[family, side]
            family_test = _meta("nfproto") + _compare(_META_VALUES[f"ipv{family}"])
            return family_test + _payload(1, offset, width) + _lookup(set_, vmap=vmap)
        case Port(proto, port):
            return _meta("l4proto") + _compare(_META_VALUES[proto]) + _payload(2, 2, 2) + _compare(port.to_bytes(2))
        case Counter(name):
            return _expression("objref", _u32(1, 1), _text(2, name))
        case Log(prefix, group):
            limit = _expression("limit", _u64(1, LOG_RATE), _u64(2, 1), _u32(3, LOG_RATE), _u32(4, 0))
            return limit + _expression(
                "log", _attr(1, struct.pack("!H", group)), _text(2, prefix), _u32(3, SNAPLEN), _attr(4, struct.pack("!H", 32))
            )
        case Reject(kind):
            type_, code = _REJECTS[kind]
            return _expression("reject", _u32(1, type_), _attr(2, bytes([code])))
        case Refusal("tcp"):  # its flags, of which RST
            flags = _meta("l4proto") + _compare(_META_VALUES["tcp"]) + _payload(2, 13, 1)
            return flags + _masked(b"\x04") + _compare(b"\0", equal=False)
        case Refusal(proto):
            version, unreachable = ("ipv4", b"\3") if proto == "icmp" else ("ipv6", b"\1")
            head = _meta("nfproto") + _compare(_META_VALUES[version]) + _meta("l4proto") + _compare(_META_VALUES[proto])
            return head + _payload(2, 0, 1) + _compare(unreachable)
        case Redirect(port):
            load = _expression("immediate", _u32(1, 1), _nest(2, _value(port.to_bytes(2))))
            return load + _expression("redir", _u32(1, 1), _u32(2, 1), _u32(3, 2))  # NF_NAT_RANGE_PROTO_SPECIFIED
        case Jump(chain):
            return _expression("immediate", _u32(1, 0), _nest(2, _verdict(_JUMP, chain)))
        case Return():
            return _expression("immediate", _u32(1, 0), _nest(2, _verdict(_RETURN)))


# ── messages ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def new_table(table: str) -> Message:
    return Message(_NEWTABLE, _NLM_F_CREATE, _text(1, table), f"add table inet {table}")


def delete_table(table: str) -> Message:
    return Message(_DELTABLE, 0, _text(1, table), f"delete table inet {table}")


def new_counter(table: str, name: str) -> Message:
    payload = _text(1, table) + _text(2, name) + _u32(3, 1) + _nest(4)
    return Message(_NEWOBJ, _NLM_F_CREATE, payload, f"add counter {name}")


def delete_counter(table: str, name: str) -> Message:
    return Message(_DELOBJ, 0, _text(1, table) + _text(2, name) + _u32(3, 1), f"delete counter {name}")


def new_chain(table: str, chain: Chain) -> Message:
    payload = _text(1, table) + _text(3, chain.name)
    if chain.hook:
        payload += _nest(4, _u32(1, _HOOKS[chain.hook.name]), _u32(2, chain.hook.priority))
        payload += _u32(5, 1) + _text(7, chain.hook.kind)
    return Message(_NEWCHAIN, _NLM_F_CREATE, payload, f"add chain {chain.name}")


def delete_chain(table: str, name: str) -> Message:
    return Message(_DELCHAIN, 0, _text(1, table) + _text(3, name), f"delete chain {name}")


def flush_chain(table: str, name: str) -> Message:
    return Message(_DELRULE, 0, _text(1, table) + _text(2, name), f"flush chain {name}")


def new_rule(table: str, chain: str, rule: Rule) -> Message:
    payload = _text(1, table) + _text(2, chain) + _nest(4, *map(encode_expression, rule.expressions))
    if rule.comment:
        comment = rule.comment.encode()[:120] + b"\0"
        payload += _attr(7, bytes([0, len(comment)]) + comment)  # NFTNL_UDATA_RULE_COMMENT
    return Message(_NEWRULE, _NLM_F_CREATE | _NLM_F_APPEND, payload, f"add rule {chain}")


def new_set(table: str, each: Set, number: int) -> Message:
    type_, length = _KEY_TYPES[each.type]
    flags = _SET_INTERVAL * each.interval | _SET_MAP * each.vmap | _SET_TIMEOUT * each.timeout
    payload = _text(1, table) + _text(2, each.name) + _u32(3, flags) + _u32(4, type_) + _u32(5, length) + _u32(10, number)
    if each.vmap:
        payload += _u32(6, _DATA_VERDICT) + _u32(7, 16)
    if not each.interval and not each.timeout:
        payload += _nest(9, _u32(1, max(len(each.elements) + len(each.words), 1)))  # sized: a quarter of the load time
    if each.type == "ifname":
        payload += _attr(13, struct.pack("=BBI", 0, 4, 1))  # NFTNL_UDATA_SET_KEYBYTEORDER: host, so that nft lists names
    return Message(_NEWSET, _NLM_F_CREATE, payload, f"add set {each.name}")


def delete_set(table: str, name: str) -> Message:
    return Message(_DELSET, 0, _text(1, table) + _text(2, name), f"delete set {name}")


def flush_set(table: str, name: str) -> Message:
    return Message(_DELSETELEM, 0, _text(1, table) + _text(2, name), f"flush set {name}")


_MAX_NEST = 60_000  # octets; the length of a nested attribute is 16 bits


def _element_messages(table: str, name: str, kind: int, elements: Iterable[bytes]) -> Iterator[Message]:
    head = _text(1, table) + _text(2, name)
    parts: list[bytes] = []
    size = 0
    for element in elements:
        if size + len(element) > _MAX_NEST:
            yield Message(kind, _NLM_F_CREATE, head + _nest(3, *parts), f"elements of {name}")
            parts, size = [], 0
        parts.append(element)
        size += len(element)
    if parts:
        yield Message(kind, _NLM_F_CREATE, head + _nest(3, *parts), f"elements of {name}")


def _encode_elements(each: Set, elements: Sequence[Element]) -> Iterator[bytes]:
    """List elements. A range is two: its first key, and the key behind its last with a flag; at the top of the space, one."""
    if each.type == "ifname":
        for word in each.words:
            yield _nest(1, _nest(1, _value(word.encode().ljust(16, b"\0"))))
        return
    width = _KEY_TYPES[each.type][1]
    top = (1 << 8 * width) - 1
    verdicts: dict[str, bytes] = {"": b""}
    for first, last, chain in elements:
        if chain not in verdicts:
            verdicts[chain] = _nest(2, _verdict(_JUMP, chain))
        start = _nest(1, _nest(1, _value(first.to_bytes(width))), verdicts[chain])
        if each.interval and last < top:
            yield start + _nest(1, _nest(1, _value((last + 1).to_bytes(width))), _u32(3, _ELEM_INTERVAL_END))
        else:
            yield start


def timed_elements(table: str, name: str, keys: Iterable[tuple[bytes, int]]) -> list[Message]:
    """Elements of a timeout set: (key, seconds). Both times are given, since equal timeouts alone renew nothing."""
    encoded = (_nest(1, _nest(1, _value(key)), _u64(4, seconds * 1000), _u64(5, seconds * 1000)) for key, seconds in keys)
    return list(_element_messages(table, name, _NEWSETELEM, encoded))


# ── the socket ───────────────────────────────────────────────────────────────────────────────────────────────────────────


class Nftables:
    """One socket to the kernel's nf_tables. Every method raises FirewallError."""

    def __init__(self) -> None:
        try:
            self._sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_NETFILTER)
            self._sock.bind((0, 0))
            for option in (_NETLINK_CAP_ACK, _NETLINK_EXT_ACK):
                self._sock.setsockopt(_SOL_NETLINK, option, 1)
            self._sock.settimeout(_ACK_TIMEOUT)
            self._sock.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, 4 << 20)
        except PermissionError:
            raise FirewallError("open nftables", NEEDS) from None
        except OSError as error:
            raise FirewallError("open nftables", error.strerror or str(error)) from None
        self._sequence = 0
        self._buffer = 0

    def close(self) -> None:
        self._sock.close()

    def transact(self, messages: Sequence[Message]) -> None:
        """All of the messages or, with FirewallError, none."""
        begin = self._sequence + 1
        out = [_header(_NFNL_BEGIN, _NLM_F_REQUEST, begin, struct.pack("=BBH", 0, 0, socket.htons(_NFTABLES)))]
        for number, message in enumerate(messages, start=1):
            flags = _NLM_F_REQUEST | message.flags | (_NLM_F_ACK if number == len(messages) else 0)
            payload = struct.pack("=BBH", _INET, 0, 0) + message.payload
            out.append(_header(_NFTABLES << 8 | message.kind, flags, begin + number, payload))
        last = begin + len(messages)
        self._sequence = last + 1
        out.append(_header(_NFNL_END, _NLM_F_REQUEST, last + 1, struct.pack("=BBH", 0, 0, socket.htons(_NFTABLES))))
        self._send(b"".join(out), messages[0].about)
        failed: list[tuple[int, int]] = []
        done = False
        while not done:
            for kind, _, sequence, payload in self._receive(messages[0].about):
                if kind == _NLMSG_ERROR and begin <= sequence <= last + 1:
                    if number := _error(payload):
                        failed.append((sequence, number))
                    done = done or sequence in (begin, last, last + 1)
        if failed:
            sequence, number = failed[0]
            about = messages[min(max(sequence - begin - 1, 0), len(messages) - 1)].about
            if number == errno.EPERM and sequence != begin:  # we may change the firewall, but not this table
                raise FirewallError(about, "another process owns the table")
            raise FirewallError(about, _reason(number))

    def _send(self, data: bytes, about: str) -> None:
        if len(data) + 65536 > self._buffer:
            self._buffer = len(data) + 65536
            try:
                self._sock.setsockopt(socket.SOL_SOCKET, _SO_SNDBUFFORCE, self._buffer)
            except PermissionError:
                raise FirewallError(about, NEEDS) from None
        try:
            self._sock.send(data)
        except OSError as error:
            raise FirewallError(about, error.strerror or str(error)) from None

    def _receive(self, about: str) -> list[tuple[int, int, int, bytes]]:
        """The messages of one datagram: (kind, flags, sequence, payload)."""
        try:
            data = self._sock.recv(_DATAGRAM)
        except TimeoutError:
            raise FirewallError(about, f"the kernel did not answer in {_ACK_TIMEOUT:.0f} s") from None
        except OSError as error:
            if error.errno == errno.ENOBUFS:
                self._drain()
            raise FirewallError(about, _reason(error.errno or 0)) from None
        found = []
        offset = 0
        while offset + 16 <= len(data):
            length, kind, flags, sequence, _ = _HEADER.unpack_from(data, offset)
            found.append((kind, flags, sequence, data[offset + 16 : offset + length]))
            offset += (length + 3) & ~3
        return found

    def _drain(self) -> None:
        """After an overrun the kernel sends nothing more until everything has been read."""
        self._sock.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            while True:
                self._sock.recv(_DATAGRAM)
        self._sock.settimeout(_ACK_TIMEOUT)

    def _dump(self, kind: int, payload: bytes, about: str) -> list[bytes]:
        """The answers to a request for a list, all of one moment. Nothing when there is no such table."""
        for _ in range(_DUMP_TRIES):
            found, torn = self._ask(kind, payload, about, _NLM_F_DUMP)
            if not torn:
                return found
        raise FirewallError(about, "others change the ruleset all the time")

    def _ask(self, kind: int, payload: bytes, about: str, flags: int = 0) -> tuple[list[bytes], bool]:
        """(the answers to a request without their nfgenmsg, whether somebody changed the ruleset between two of them)."""
        self._sequence += 1
        body = struct.pack("=BBH", _INET, 0, 0) + payload
        self._send(_header(_NFTABLES << 8 | kind, _NLM_F_REQUEST | flags, self._sequence, body), about)
        found: list[bytes] = []
        torn = False
        while True:
            for got, marks, sequence, data in self._receive(about):
                if sequence != self._sequence:
                    continue
                torn = torn or bool(marks & _NLM_F_DUMP_INTR)
                if got == _NLMSG_ERROR:
                    number = _error(data)
                    if number == errno.ENOENT:
                        return [], False
                    raise FirewallError(about, _reason(number))
                if got == _NLMSG_DONE:
                    return found, torn
                found.append(data[4:])
                if not flags:
                    return found, False

    # ── reading ──────────────────────────────────────────────────────────────────────────────────────────────────────

    def generation_id(self) -> int:
        """The number of the last committed transaction in this namespace; six microseconds to ask."""
        return int(struct.unpack("!I", _attributes(self._ask(_GETGEN, b"", "read generation")[0][0])[1])[0])

    def has_table(self, table: str) -> bool:
        return bool(self._ask(_GETTABLE, _text(1, table), "read table")[0])

    def _rows(self, kind: int, table: str, table_attr: int, about: str) -> list[dict[int, bytes]]:
        rows = map(_attributes, self._dump(kind, _text(table_attr, table), about))
        return [row for row in rows if _string(row[table_attr]) == table]

    def sets(self, table: str) -> list[str]:
        return [_string(row[2]) for row in self._rows(_GETSET, table, 1, "list sets")]

    def chains(self, table: str) -> dict[str, bool]:
        """Name → whether a hook leads there."""
        return {_string(row[3]): 4 in row for row in self._rows(_GETCHAIN, table, 1, "list chains")}

    def counters(self, table: str) -> dict[str, tuple[int, int]]:
        """Counter → (packets, bytes)."""
        found = {}
        for row in map(_attributes, self._dump(_GETOBJ, _text(1, table) + _u32(3, 1), "read counters")):
            if _string(row[1]) == table:
                data = _attributes(row[4])
                found[_string(row[2])] = (struct.unpack("!Q", data[2])[0], struct.unpack("!Q", data[1])[0])
        return found

    def keys(self, table: str, name: str) -> list[bytes]:
        """The keys of a set as the kernel holds them, ends of ranges left out."""
        found = []
        for message in self._dump(_GETSETELEM, _text(1, table) + _text(2, name), f"list {name}"):
            for element in _list(_attributes(message).get(3, b"")):
                row = _attributes(element)
                if not (3 in row and struct.unpack("!I", row[3])[0] & _ELEM_INTERVAL_END):
                    found.append(_attributes(row[1])[1])
        return found

    # ── changing ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def replace(self, ruleset: Ruleset) -> None:
        """Put this ruleset in force instead of whatever the table holds, without a packet let through or lost."""
        old = self._holding(ruleset.table)
        mine = {each.name for each in ruleset.sets if not each.keep}
        if stale := mine & set(old.sets):  # left over from an attempt of the same generation that failed, or in use by it
            raise FirewallError("replace", f"set {min(stale)} of this generation exists already")
        try:
            self.transact([*_prepare(ruleset, old)])
            for chunk in _fill(ruleset):
                self.transact(chunk)
                time.sleep(0.001)  # others wait for the same lock
            self.transact([*_switch(ruleset, old)])
        except FirewallError:
            self._undo(ruleset.table, old)
            raise
        if remains := [*_remains(ruleset, old)]:
            time.sleep(GRACE)
            with contextlib.suppress(FirewallError):  # nothing refers to them; the next replacement takes them along
                self.transact(remains)

    def _holding(self, table: str) -> "_Holding":
        return _Holding(self.has_table(table), self.sets(table), self.chains(table), list(self.counters(table)))

    def _undo(self, table: str, old: "_Holding") -> None:
        with contextlib.suppress(FirewallError):  # what stays is used by nothing, and the first failure is the one to tell
            if additions := [*_additions(table, old, self._holding(table))]:
                self.transact(additions)

    def check(self, ruleset: Ruleset) -> None:
        """A dry run: the kernel builds the ruleset and forgets it, in one transaction. Raises FirewallError."""
        fill = [message for chunk in _fill(ruleset) for message in chunk]
        self.transact([*_prepare(ruleset, _NOTHING), *fill, *_switch(ruleset, _NOTHING), delete_table(ruleset.table)])

    def remove(self, table: str) -> None:
        if self.has_table(table):
            self.transact([delete_table(table)])


NEEDS = "the kernel wants CAP_NET_ADMIN; run as root, or set [firewall] enabled = false"
_REASONS = {
    errno.EPERM: NEEDS,
    # one message of a batch is acknowledged and lists wait for us to read: only a flood of errors fills the buffer
    errno.ENOBUFS: "more refusals than could be read",
    errno.EEXIST: "exists already, or overlaps",
    errno.ENOENT: "no such thing in the table, or the kernel lacks a module: nft_log, nft_limit, nft_reject_inet, nft_redir",
}


def _reason(number: int) -> str:
    return _REASONS.get(number) or os.strerror(number)


def _error(payload: bytes) -> int:
    """The errno of an NLMSG_ERROR, 0 for an acknowledgement."""
    return -int(struct.unpack_from("=i", payload)[0])


class _Holding(NamedTuple):
    """What a table holds, by name."""

    table: bool
    sets: Sequence[str]
    chains: Mapping[str, bool]  # whether a hook leads there
    counters: Sequence[str]


_NOTHING = _Holding(False, (), {}, ())


def _additions(table: str, old: _Holding, now: _Holding) -> Iterator[Message]:
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


def _prepare(ruleset: Ruleset, old: _Holding) -> Iterator[Message]:
    """Everything that can stand there before it is used: table, counters, new class chains, empty sets."""
    table = ruleset.table
    yield new_table(table)
    for name in ruleset.counters:
        yield new_counter(table, name)
    for number, each in enumerate(ruleset.sets, start=1):
        yield new_set(table, each, number)
    classes = {element.chain for each in ruleset.sets for element in each.elements}
    for chain in ruleset.chains:
        if chain.name in classes and chain.name not in old.chains:
            yield new_chain(table, chain)
            for rule in chain.rules:
                yield new_rule(table, chain.name, rule)


def _fill(ruleset: Ruleset) -> Iterator[list[Message]]:
    for each in ruleset.sets:
        if each.words:
            yield list(_element_messages(ruleset.table, each.name, _NEWSETELEM, _encode_elements(each, ())))
        for start in range(0, len(each.elements), CHUNK):
            part = each.elements[start : start + CHUNK]
            yield list(_element_messages(ruleset.table, each.name, _NEWSETELEM, _encode_elements(each, part)))


def _switch(ruleset: Ruleset, old: _Holding) -> Iterator[Message]:
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


def _remains(ruleset: Ruleset, old: _Holding) -> Iterator[Message]:
    """What the old rules used and the new ones do not."""
    table = ruleset.table
    sets, chains = {each.name for each in ruleset.sets}, {chain.name for chain in ruleset.chains}
    gone = [name for name in old.chains if name not in chains]
    yield from (flush_chain(table, name) for name in gone)
    yield from (delete_set(table, name) for name in old.sets if name not in sets)
    yield from (delete_chain(table, name) for name in gone)


def alive(table: str, lan: Iterable[str], seconds: int = ALIVE_SECONDS) -> list[Message]:
    """The interfaces whose clients are answered, for so long."""
    return timed_elements(table, "alive", [(name.encode().ljust(16, b"\0"), seconds) for name in lan])


def _header(kind: int, flags: int, sequence: int, payload: bytes) -> bytes:
    return _HEADER.pack(16 + len(payload), kind, flags, sequence, 0) + payload + bytes(-len(payload) % 4)


def _list(data: bytes) -> Iterator[bytes]:
    offset = 0
    while offset + 4 <= len(data):
        length = struct.unpack_from("=H", data, offset)[0]
        if length < 4:
            return
        yield data[offset + 4 : offset + length]
        offset += (length + 3) & ~3


def _attributes(data: bytes) -> dict[int, bytes]:
    found = {}
    offset = 0
    while offset + 4 <= len(data):
        length, kind = struct.unpack_from("=HH", data, offset)
        if length < 4:
            break
        found[kind & 0x3FFF] = data[offset + 4 : offset + length]
        offset += (length + 3) & ~3
    return found


def _string(data: bytes) -> str:
    return data.rstrip(b"\0").decode()
