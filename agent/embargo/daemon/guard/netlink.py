"""What the guardian says to the kernel, on a plain NETLINK_NETFILTER socket.

A transaction is one batch in one send: BEGIN, messages, END; the kernel takes all of it or nothing. Only the last message
asks for an acknowledgement (asking on each overruns the receive buffer although the batch was applied); errors come for
every message that failed, with its sequence number, which leads back to the object it was about.
"""

import contextlib
import errno
import os
import re
import socket
import struct
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Sequence

from embargo.errors import FirewallError
from embargo.firewall import change, nft, wire
from embargo.firewall.change import Holding
from embargo.firewall.nft import Message, Shape
from embargo.firewall.table import Chain, Expression, Hook, Rule, Ruleset, bare

GRACE = 0.02  # seconds after which no packet is on the old rules any more; one spends microseconds there
_ACK_TIMEOUT = 30.0  # seconds; a million elements take six
_TRIAL = "embargo_trial"  # the name of a table that never comes to be
_DATAGRAM = 1 << 16  # octets; the kernel's are of 32 KiB at most
_DUMP_TRIES = 20  # others may commit while we list; a list of names takes 80 microseconds

_NETLINK_NETFILTER = 12
_SO_SNDBUFFORCE, _SO_RCVBUFFORCE = 32, 33
_SOL_NETLINK, _NETLINK_CAP_ACK, _NETLINK_EXT_ACK = 270, 10, 11
_NFNL_BEGIN, _NFNL_END, _NFTABLES = 0x10, 0x11, 10


def opened() -> socket.socket:
    """The socket by which the kernel knows the owner of a table: whoever has it may change that one. FirewallError."""
    sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETLINK_NETFILTER)
    try:
        sock.bind((0, 0))
        for option in (_NETLINK_CAP_ACK, _NETLINK_EXT_ACK):
            sock.setsockopt(_SOL_NETLINK, option, 1)
        sock.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, 4 << 20)
    except PermissionError:
        sock.close()
        raise FirewallError("open nftables", NEEDS) from None
    except OSError as error:
        sock.close()
        raise FirewallError("open nftables", error.strerror or str(error)) from None
    return sock


class Nftables:
    """One socket to the kernel's nf_tables. Every method raises FirewallError."""

    def __init__(self, sock: socket.socket | None = None) -> None:
        """`sock`: from `opened`, perhaps used by somebody before us."""
        self._sock = sock or opened()
        self._sock.settimeout(_ACK_TIMEOUT)
        self._sequence = int.from_bytes(os.urandom(4)) >> 1  # what was meant for another is not taken for ours
        self._buffer = 0
        self._flags = 0  # of the table

    def close(self) -> None:
        self._sock.close()

    def transact(self, messages: Sequence[Message]) -> None:
        """All of the messages or, with FirewallError, none."""
        begin, last = self._sequence + 1, self._sequence + 1 + len(messages)
        self._sequence = last + 1
        self._send(_batch(messages, begin), messages[0].about)
        failed: list[tuple[int, int]] = []
        done = False
        while not done:
            for kind, _, sequence, payload in self._receive(messages[0].about):
                if kind == wire.ERROR and begin <= sequence <= last + 1:
                    if number := wire.error(payload):
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
        return list(wire.messages(data))

    def _drain(self) -> None:
        """After an overrun the kernel sends nothing more until everything has been read."""
        self._sock.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            while True:
                self._sock.recv(_DATAGRAM)
        self._sock.settimeout(_ACK_TIMEOUT)

    def _dump(self, kind: int, payload: bytes, about: str, family: int = nft.INET) -> list[bytes]:
        """The answers to a request for a list, all of one moment. Nothing when there is no such table."""
        for _ in range(_DUMP_TRIES):
            found, torn = self._ask(kind, payload, about, wire.DUMP, family)
            if not torn:
                return found
        raise FirewallError(about, "others change the ruleset all the time")

    def _ask(self, kind: int, payload: bytes, about: str, flags: int = 0, family: int = nft.INET) -> tuple[list[bytes], bool]:
        """(the answers to a request without their nfgenmsg, whether somebody changed the ruleset between two of them)."""
        self._sequence += 1
        body = wire.netfilter(family) + payload
        self._send(wire.message(_NFTABLES << 8 | kind, wire.REQUEST | flags, self._sequence, body), about)
        found: list[bytes] = []
        torn = False
        while True:
            for got, marks, sequence, data in self._receive(about):
                if sequence != self._sequence:
                    continue
                torn = torn or bool(marks & wire.DUMP_INTR)
                if got == wire.ERROR:
                    number = wire.error(data)
                    if number == errno.ENOENT:
                        return [], False
                    raise FirewallError(about, _reason(number))
                if got == wire.DONE:
                    return found, torn
                found.append(data[wire.NETFILTER_HEADER :])
                if not flags:
                    return found, False

    # ── reading ──────────────────────────────────────────────────────────────────────────────────────────────────────

    def generation_id(self) -> int:
        """The number of the last committed transaction in this namespace; six microseconds to ask."""
        return int(struct.unpack("!I", wire.attributes(self._ask(nft.GETGEN, b"", "read generation")[0][0])[1])[0])

    def has_table(self, table: str) -> bool:
        return bool(self._ask(nft.GETTABLE, wire.text(1, table), "read table")[0])

    def _rows(self, kind: int, table: str, table_attr: int, about: str) -> list[dict[int, bytes]]:
        rows = map(wire.attributes, self._dump(kind, wire.text(table_attr, table), about))
        return [row for row in rows if wire.string(row[table_attr]) == table]

    def sets(self, table: str) -> list[str]:
        return [wire.string(row[2]) for row in self._rows(nft.GETSET, table, 1, "list sets")]

    def chains(self, table: str) -> dict[str, bool]:
        """Name → whether a hook leads there."""
        return {wire.string(row[3]): 4 in row for row in self._rows(nft.GETCHAIN, table, 1, "list chains")}

    def intact(self, shape: Shape) -> bool:
        """Are its rules there, and the table awake? Somebody may have flushed it. About 3 µs a rule."""
        flags = self.flags(shape.table)
        if flags is None or flags & nft.DORMANT:
            return False
        rules = Counter(wire.string(row[2]) for row in self._rows(nft.GETRULE, shape.table, 1, "list rules"))
        return all(rules[chain] == count for chain, count in shape.rules.items())

    def whole(self, shape: Shape, learnt: int = 0) -> bool:
        """Are the elements of its maps and sets there, and so many learnt ones? About 0.3 µs each."""
        if any(self._items(shape.table, name) < count for name, count in shape.items.items()):
            return False
        return not learnt or sum(self._items(shape.table, name) for name in shape.learnt) >= learnt

    def flowtables(self) -> list[str]:
        """Whatever forwards packets of open flows past all rules, as `table/name`."""
        try:
            rows = map(wire.attributes, self._dump(nft.GETFLOWTABLE, b"", "list flowtables", family=0))
            return [f"{wire.string(row[1])}/{wire.string(row[2])}" for row in rows]
        except FirewallError:  # a kernel without them
            return []

    def _items(self, table: str, name: str) -> int:
        payload = wire.text(1, table) + wire.text(2, name)
        found = self._dump(nft.GETSETELEM, payload, f"list {name}")
        return sum(sum(1 for _ in wire.items(wire.attributes(message).get(3, b""))) for message in found)

    def flags(self, table: str) -> int | None:
        """Its flags, None without a table."""
        rows = self._ask(nft.GETTABLE, wire.text(1, table), "read table")[0]
        return int.from_bytes(wire.attributes(rows[0])[2]) if rows else None

    @property
    def owned(self) -> bool:
        """Is the table ours alone? Then no other process can change it, nor flush it."""
        return bool(self._flags & nft.OWNER)

    def claim(self, table: str, *, alone: bool) -> None:
        """Decide whose the table will be, or take over the one that is there.

        `alone`: ours, as far as the kernel can (PERSIST: from 6.9 on), so that a foreign `flush ruleset` passes it over and it
        outlives this process. A table keeps the flags that it was made with; one whose owner has died is adopted.
        """
        flags = self.flags(table)
        both = nft.OWNER | nft.PERSIST
        if flags is None:
            self._flags = both if alone and self._can_own() else 0
        elif not flags & nft.PERSIST:
            self._flags = flags & nft.OWNER
        elif flags & nft.OWNER or not alone:
            self._flags = flags & both
        else:
            self.transact([nft.new_table(table, both)])
            self._flags = both

    def _can_own(self) -> bool:
        try:
            self.transact([nft.new_table(_TRIAL, nft.OWNER | nft.PERSIST), nft.delete_table(_TRIAL)])
        except FirewallError:
            return False
        return True

    def can(self, *expressions: Expression) -> bool:
        """Does this kernel know a rule of these expressions?"""
        chain = Chain("trial", (Rule(expressions),), Hook("filter", "forward", 0))
        rules = (nft.new_chain(_TRIAL, chain), nft.new_rule(_TRIAL, chain.name, chain.rules[0]))
        try:
            self.transact([nft.new_table(_TRIAL, nft.DORMANT), *rules, nft.delete_table(_TRIAL)])
        except FirewallError:
            return False
        return True

    def judgement(self, table: str) -> int:
        """The number of the judgement in force, which stands in a comment (`ruleset.mark_chain`); 0 without one."""
        rows = self._rows(nft.GETRULE, table, 1, "list rules")
        found = [re.search(rb"judgement (\d+)", row[7]) for row in rows if 7 in row]
        return max((int(each[1]) for each in found if each), default=0)

    def counters(self, table: str) -> dict[str, tuple[int, int]]:
        """Counter → (packets, bytes)."""
        found = {}
        for row in map(
            wire.attributes, self._dump(nft.GETOBJ, wire.text(1, table) + wire.u32(3, nft.COUNTER), "read counters")
        ):
            if wire.string(row[1]) == table:
                data = wire.attributes(row[4])
                found[wire.string(row[2])] = (struct.unpack("!Q", data[2])[0], struct.unpack("!Q", data[1])[0])
        return found

    def keys(self, table: str, name: str) -> list[bytes]:
        """The keys of a set as the kernel holds them, ends of ranges left out."""
        found = []
        for message in self._dump(nft.GETSETELEM, wire.text(1, table) + wire.text(2, name), f"list {name}"):
            for element in wire.items(wire.attributes(message).get(3, b"")):
                row = wire.attributes(element)
                if not (3 in row and struct.unpack("!I", row[3])[0] & nft.INTERVAL_END):
                    found.append(wire.attributes(row[1])[1])
        return found

    # ── changing ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def replace(self, ruleset: Ruleset) -> None:
        """Put this ruleset in force instead of whatever the table holds, without a packet let through or lost."""
        for pause in self.replacing(ruleset):
            time.sleep(pause)

    def replacing(
        self,
        ruleset: Ruleset,
        last: Callable[[], Iterable[Message]] = tuple,
        switched: Callable[[], None] = lambda: None,
    ) -> Generator[float]:
        """The same, step by step: each time it wants so many seconds to pass, in which other transactions may be sent.

        `last` gives what is to be in the new maps from the first moment on and was not known before; `switched` is called
        when the ruleset is in force.
        """
        old = self._holding(ruleset.table)
        mine = {each.name for each in ruleset.sets if not each.keep}
        if stale := mine & set(old.sets):  # left over from an attempt of the same generation that failed, or in use by it
            raise FirewallError("replace", f"set {min(stale)} of this generation exists already")
        self.check(bare(ruleset, _TRIAL))  # a rule that this kernel refuses, before a million elements
        try:
            self.transact([*change.prepare(ruleset, old, self._flags)])
            for chunk in change.fill(ruleset):
                self.transact(chunk)
                yield 0.0  # others wait for the same lock
            self.transact([*last(), *change.switch(ruleset, old)])
            switched()
        except (FirewallError, GeneratorExit):
            self._undo(ruleset.table, old)
            raise
        if remains := [*change.remains(ruleset, old)]:
            yield GRACE
            with contextlib.suppress(FirewallError):  # nothing refers to them; the next replacement takes them along
                self.transact(remains)

    def _holding(self, table: str) -> Holding:
        return Holding(self.has_table(table), self.sets(table), self.chains(table), list(self.counters(table)))

    def _undo(self, table: str, old: Holding) -> None:
        with contextlib.suppress(FirewallError):  # what stays is used by nothing, and the first failure is the one to tell
            if additions := [*change.additions(table, old, self._holding(table))]:
                self.transact(additions)

    def drop_keys(self, table: str, name: str, keys: Sequence[bytes]) -> None:
        """Delete elements, also when some of them are gone already: their time may be over."""
        if not keys:
            return
        try:
            self.transact(nft.delete_elements(table, name, keys))
        except FirewallError:
            for key in keys:
                with contextlib.suppress(FirewallError):
                    self.transact(nft.delete_elements(table, name, [key]))

    def check(self, ruleset: Ruleset) -> None:
        """A dry run: the kernel builds the ruleset and forgets it, in one transaction. Raises FirewallError."""
        filling = [message for chunk in change.fill(ruleset) for message in chunk]
        building = [*change.prepare(ruleset, change.NOTHING), *filling, *change.switch(ruleset, change.NOTHING)]
        self.transact([*building, nft.delete_table(ruleset.table)])

    def remove(self, table: str) -> None:
        if self.has_table(table):
            self.transact([nft.delete_table(table)])


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


def _batch(messages: Sequence[Message], begin: int) -> bytes:
    """BEGIN with this sequence number, the messages, END. The last message asks for an acknowledgement."""
    edge = wire.netfilter(resource=_NFTABLES)
    head = wire.netfilter(nft.INET)
    out = [wire.message(_NFNL_BEGIN, wire.REQUEST, begin, edge)]
    for number, message in enumerate(messages, start=1):
        flags = wire.REQUEST | message.flags | (wire.ACK if number == len(messages) else 0)
        out.append(wire.message(_NFTABLES << 8 | message.kind, flags, begin + number, head + message.payload))
    return b"".join([*out, wire.message(_NFNL_END, wire.REQUEST, begin + len(messages) + 1, edge)])
