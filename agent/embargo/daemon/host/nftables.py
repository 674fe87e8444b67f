"""The kernel's nf_tables on a plain NETLINK_NETFILTER socket: transactions, lists, and the replacement of a table's content.

A transaction is one batch in one send: BEGIN, messages, END; the kernel takes all of it or nothing. Only the last message
asks for an acknowledgement (with one for each the receive buffer overruns, although the batch is applied); an error comes for
every message that failed, with its sequence number, which leads to the object that the message was about.

Only the guardian changes rules. The supervisor opens the socket, because the table belongs to it and must outlive a guardian;
`check` does a dry run, `verify` reads counters.
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

OLD_RULES_SECONDS = 0.02  # after a switch, until no packet is on the old rules any more; a packet spends microseconds there
_ANSWER_SECONDS = 30.0  # that the kernel may take for an answer; a million elements take six
_TRIAL = "embargo_trial"  # the table of dry runs, which is deleted in the transaction that makes it
_DATAGRAM = 1 << 16  # octets; the kernel's are of 32 KiB at most
_MAX_READINGS = 20  # of a list during which other processes change the ruleset; a list of names takes 80 microseconds

_NETLINK_NETFILTER = 12
_SO_SNDBUFFORCE, _SO_RCVBUFFORCE = 32, 33
_SOL_NETLINK, _NETLINK_CAP_ACK, _NETLINK_EXT_ACK = 270, 10, 11
_NFNL_BEGIN, _NFNL_END, _NFTABLES = 0x10, 0x11, 10


def opened() -> socket.socket:
    """A socket to nf_tables. The kernel knows the owner of a table by it: the table is changed by this socket alone.

    FirewallError without CAP_NET_ADMIN, or where the kernel has no nf_tables.
    """
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
        """`sock`: from `opened`; another process may have used it before."""
        self._sock = sock or opened()
        self._sock.settimeout(_ANSWER_SECONDS)
        self._sequence = (
            int.from_bytes(os.urandom(4)) >> 1
        )  # random: an answer to an earlier user of the socket is not taken for ours
        self._buffer = 0  # octets of the send buffer
        self._flags = 0  # NFT_TABLE_F_* of the table

    def close(self) -> None:
        """Close the socket. It ends the ownership of a table that was created through it (NFT_TABLE_F_OWNER)."""
        self._sock.close()

    def transact(self, messages: Sequence[Message]) -> None:
        """Send these messages as one transaction: all of them are carried out or, with FirewallError, none."""
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
            raise FirewallError(about, f"the kernel did not answer in {_ANSWER_SECONDS:.0f} s") from None
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
        self._sock.settimeout(_ANSWER_SECONDS)

    def _dump(self, kind: int, payload: bytes, about: str, family: int = nft.INET) -> list[bytes]:
        """The answers to a request for a list, all of one moment, without their nfgenmsg. Empty without such a table."""
        for _ in range(_MAX_READINGS):
            found, torn = self._ask(kind, payload, about, wire.DUMP, family)
            if not torn:
                return found
        raise FirewallError(about, "other processes change the ruleset all the time")

    def _ask(self, kind: int, payload: bytes, about: str, flags: int = 0, family: int = nft.INET) -> tuple[list[bytes], bool]:
        """(the answers to a request without their nfgenmsg, whether the ruleset changed between two of them)."""
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
        """The number of the last transaction in this network namespace. Asking takes six microseconds."""
        return int(struct.unpack("!I", wire.attributes(self._ask(nft.GETGEN, b"", "read generation")[0][0])[1])[0])

    def has_table(self, table: str) -> bool:
        """Whether the table exists."""
        return bool(self._ask(nft.GETTABLE, wire.text(1, table), "read table")[0])

    def _rows(self, kind: int, table: str, table_attr: int, about: str) -> list[dict[int, bytes]]:
        rows = map(wire.attributes, self._dump(kind, wire.text(table_attr, table), about))
        return [row for row in rows if wire.string(row[table_attr]) == table]

    def sets(self, table: str) -> list[str]:
        """The names of its sets and maps."""
        return [wire.string(row[2]) for row in self._rows(nft.GETSET, table, 1, "list sets")]

    def chains(self, table: str) -> dict[str, bool]:
        """The names of its chains → whether a hook leads there."""
        return {wire.string(row[3]): 4 in row for row in self._rows(nft.GETCHAIN, table, 1, "list chains")}

    def intact(self, shape: Shape) -> bool:
        """Whether all its rules exist, and the table is not dormant: another process may have flushed it. 3 µs a rule."""
        flags = self.flags(shape.table)
        if flags is None or flags & nft.DORMANT:
            return False
        rules = Counter(wire.string(row[2]) for row in self._rows(nft.GETRULE, shape.table, 1, "list rules"))
        return all(rules[chain] == count for chain, count in shape.rules.items())

    def whole(self, shape: Shape, learnt: int = 0) -> bool:
        """Whether its sets have all their elements, and those of learnt addresses `learnt` or more. 0.3 µs an element."""
        if any(self._items(shape.table, name) < count for name, count in shape.items.items()):
            return False
        return not learnt or sum(self._items(shape.table, name) for name in shape.learnt) >= learnt

    def flowtables(self) -> list[str]:
        """The flowtables of all tables, as `table/name`: they forward packets of open flows past all rules."""
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
        """The table's flags; None without such a table."""
        rows = self._ask(nft.GETTABLE, wire.text(1, table), "read table")[0]
        return int.from_bytes(wire.attributes(rows[0])[2]) if rows else None

    @property
    def owned(self) -> bool:
        """Whether the table belongs to our socket: then no other process can change or flush it."""
        return bool(self._flags & nft.OWNER)

    def claim(self, table: str, *, alone: bool) -> None:
        """Decide who may change the table, or take over the one that exists.

        `alone`: only our socket, where the kernel can do it (PERSIST, Linux 6.9), so that `flush ruleset` of other processes
        leaves it and it outlives this process. A table keeps the flags that it was made with; a table whose owner is gone is
        adopted.
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
        """Whether this kernel accepts a rule of these expressions."""
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
        """Name of a counter → (packets, octets)."""
        found = {}
        for row in map(
            wire.attributes, self._dump(nft.GETOBJ, wire.text(1, table) + wire.u32(3, nft.COUNTER), "read counters")
        ):
            if wire.string(row[1]) == table:
                data = wire.attributes(row[4])
                found[wire.string(row[2])] = (struct.unpack("!Q", data[2])[0], struct.unpack("!Q", data[1])[0])
        return found

    def keys(self, table: str, name: str) -> list[bytes]:
        """The keys of a set as the kernel holds them, without the ends of ranges."""
        found = []
        for message in self._dump(nft.GETSETELEM, wire.text(1, table) + wire.text(2, name), f"list {name}"):
            for element in wire.items(wire.attributes(message).get(3, b"")):
                row = wire.attributes(element)
                if not (3 in row and struct.unpack("!I", row[3])[0] & nft.INTERVAL_END):
                    found.append(wire.attributes(row[1])[1])
        return found

    # ── changing ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def replace(self, ruleset: Ruleset) -> None:
        """Put this ruleset in force in place of what the table holds, without a packet let through or lost on the way."""
        for pause in self.replacing(ruleset):
            time.sleep(pause)

    def replacing(
        self,
        ruleset: Ruleset,
        last: Callable[[], Iterable[Message]] = tuple,
        switched: Callable[[], None] = lambda: None,
    ) -> Generator[float]:
        """The same in steps. Between two of them so many seconds must pass, in which other transactions may be sent.

        `last` gives what must be in the new sets when they take effect and was not known before; `switched` is called when the
        ruleset is in force. Closing the generator before that leaves the old ruleset in force.
        """
        old = self._holding(ruleset.table)
        mine = {each.name for each in ruleset.sets if not each.keep}
        if stale := mine & set(old.sets):  # left over from an attempt of the same generation that failed, or in use by it
            raise FirewallError("replace", f"set {min(stale)} exists already")
        self.check(bare(ruleset, _TRIAL))  # a rule that this kernel refuses, before a million elements
        try:
            self.transact([*change.prepare(ruleset, old, self._flags)])
            for chunk in change.fill(ruleset):
                self.transact(chunk)
                yield 0.0  # other transactions wait for the same lock
            self.transact([*last(), *change.switch(ruleset, old)])
            switched()
        except (FirewallError, GeneratorExit):
            self._undo(ruleset.table, old)
            raise
        if remains := [*change.remains(ruleset, old)]:
            yield OLD_RULES_SECONDS
            with contextlib.suppress(FirewallError):  # no rule refers to them; the next replacement deletes them
                self.transact(remains)

    def _holding(self, table: str) -> Holding:
        return Holding(self.has_table(table), self.sets(table), self.chains(table), list(self.counters(table)))

    def _undo(self, table: str, old: Holding) -> None:
        with contextlib.suppress(FirewallError):  # what stays is not used, and the first error is the one to report
            if additions := [*change.additions(table, old, self._holding(table))]:
                self.transact(additions)

    def drop_keys(self, table: str, name: str, keys: Sequence[bytes]) -> None:
        """Delete elements, also when some are gone already, since their time was over."""
        if not keys or self._deleted(table, name, keys):
            return
        present = list(set(keys).intersection(self.keys(table, name)))
        if present and not self._deleted(table, name, present):  # one of them has gone since
            for key in present:
                self._deleted(table, name, [key])

    def _deleted(self, table: str, name: str, keys: Sequence[bytes]) -> bool:
        """Whether these elements were deleted. One that is not there makes the whole transaction fail."""
        try:
            self.transact(nft.delete_elements(table, name, keys))
        except FirewallError:
            return False
        return True

    def check(self, ruleset: Ruleset) -> None:
        """A dry run: the kernel builds the ruleset and deletes it, in one transaction. FirewallError if it refuses a part."""
        filling = [message for chunk in change.fill(ruleset) for message in chunk]
        building = [*change.prepare(ruleset, change.NOTHING), *filling, *change.switch(ruleset, change.NOTHING)]
        self.transact([*building, nft.delete_table(ruleset.table)])

    def remove(self, table: str) -> None:
        """Delete the table, if it exists."""
        if self.has_table(table):
            self.transact([nft.delete_table(table)])


NEEDS = "the kernel requires CAP_NET_ADMIN; run as root, or set [firewall] enabled = false"
_REASONS = {
    errno.EPERM: NEEDS,
    # one message of a batch is acknowledged, and lists wait for their reader: only a flood of errors fills the buffer
    errno.ENOBUFS: "more errors than could be read",
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
