"""The drop log: records of the kernel about packets that met a rule of ours, turned into events that say who, what and why.

Equal attempts are folded by `events.Folder`. What the kernel counts but has no record of, since records are limited by rate, is
taken from its counters, so that log and counters agree (`reconcile`).
"""

import asyncio
import ipaddress
import time
from collections import Counter
from collections.abc import Hashable, Mapping
from typing import NamedTuple

from embargo import events, names
from embargo.daemon.guard.neighbours import Neighbours
from embargo.daemon.guard.nflog import NfLog, Record
from embargo.daemon.process.outbox import Outbox
from embargo.events import Way
from embargo.firewall.learning import Book
from embargo.lists.image import Image
from embargo.lists.policy import Action, Class, Decision

PROTOCOLS = {1: "icmp", 6: "tcp", 17: "udp", 58: "icmpv6", 132: "sctp"}

_LEARNT = "learnt/"  # begins the classes of learnt addresses, see `ruleset.LEARNT`
_LISTED = "listed/"  # begins the classes of very large lists, see `ruleset.LISTED`


class Attribution(NamedTuple):
    """What explains a record: the policy that the kernel enforces."""

    generation: int
    image: Image
    actions: Mapping[str, Action]
    clients: Mapping[str, str]  # address of a client → its name in [dns] hosts


class _Balance:
    """Packets of a class: those that the kernel counted, against those that the log reports."""

    __slots__ = ("offset", "packets", "unlogged")

    def __init__(self, offset: int, packets: int) -> None:
        self.offset = offset  # packets that the counter had before they were ours to report
        self.packets = packets  # in the counter at the last look
        self.unlogged = 0  # packets that were reported without a record


class DropLog:
    """Reads one log group, explains its records by the policy and the learnt addresses, and hands events to the outbox."""

    def __init__(self, outbox: Outbox, book: Book) -> None:
        self._loop = asyncio.get_running_loop()
        self._outbox = outbox
        self._book = book
        self._log: NfLog | None = None
        self._group = -1
        self._by: Attribution | None = None
        self._explained = 0  # how many policies have explained records
        self._folder = events.Folder()
        self._neighbours = Neighbours()
        self._records: Counter[str] = Counter()  # by class of the rule (chain)
        self.hits: Counter[str] = Counter()  # records by class of the entry or name
        self._balances: dict[str, _Balance] = {}  # by class of the rule
        self._tick()

    @property
    def lost(self) -> int:
        """Records that the kernel could not deliver."""
        return self._log.lost if self._log is not None else 0

    @property
    def noted(self) -> int:
        """Packets that the kernel has reported."""
        return self._folder.noted

    def listen(self, group: int) -> None:
        """Read this log group from now on. Called before a rule can drop anything. FirewallError if it is in use."""
        if group == self._group:
            return
        log = NfLog(group)
        if self._log is not None:
            self._loop.remove_reader(self._log.fileno())
            self._log.close()
        self._log, self._group = log, group
        self._loop.add_reader(log.fileno(), self.read)

    def explain_by(self, attribution: Attribution) -> None:
        """Explain records by this policy from now on. Records that another one explains are counted apart."""
        self._by = attribution
        self._explained += 1
        if attribution.clients:  # then every new attempt asks which of them the client is
            self._neighbours.prepare()

    def read(self) -> None:
        """Read the records that have come, a bounded number of them."""
        if self._log is None:
            return
        now, wall = self._loop.time(), time.time()
        for record in self._log.read():
            self._records[record.app_class] += 1
            self.hits[self._class(record, now)] += 1
            key = (record.dst, record.proto, record.dport, record.app_class, self._explained)
            if not self._folder.again(record.src, key, wall):
                line = self._folder.note(record.src, self._ways(key, record, now), now, wall)
                if line is not None:
                    self._outbox.add(line)
        self._outbox.set_noted(self._folder.noted)

    def _ways(self, key: Hashable, record: Record, now: float) -> tuple[Way, ...]:
        """How a record may be counted, see `events.Folder.note`: alone, with others of its class, of its client, of anybody."""
        return (
            Way(key, lambda: self._members(record, now)),
            Way((record.app_class, self._explained), lambda: self._others(self._about(self._class(record, now)), record, now)),
            Way("", lambda: self._others({}, record, now)), Way("", lambda: _ordered({"others": True})),
        )  # fmt: skip

    def _others(self, about: events.Event, record: Record, now: float) -> str:
        """The members of a record of further attempts of a client."""
        outward, _ = self._decision(record, now)
        return _ordered(about | self._client(record, now, outward=outward) | {"others": True})

    def _client(self, record: Record, now: float, *, outward: bool) -> events.Event:
        """The client's members of an event."""
        client = record.src if outward else record.dst
        event: events.Event = {"client": _text(client)}
        if mac := record.mac if outward else self._neighbours.mac(_text(client), now):
            event["client_mac"] = mac
        if name := self._name(client, mac, now):
            event["client_name"] = name
        return event

    def _members(self, record: Record, now: float) -> str:
        outward, decision = self._decision(record, now)
        other = record.dst if outward else record.src
        event = self._about(self._class(record, now)) | self._client(record, now, outward=outward)
        led = [names.to_text(each) for each in reversed(self._book.names(other))]
        event |= {
            "dst": _text(other), "dport": record.dport if outward else record.sport,
            "proto": PROTOCOLS.get(record.proto, str(record.proto)), "names": led,
        }  # fmt: skip
        if not led:
            event["direct"] = True  # no name that we answered led there
        return _ordered(event | decision)

    def _class(self, record: Record, now: float) -> str:
        """The class that an attempt counts for: of a learnt address its name's, of a very large list the entry's."""
        if record.app_class.startswith(_LEARNT):
            reason = self._book.reason(record.dst, now) or self._book.reason(record.src, now)
            return str(reason.class_) if reason is not None else record.app_class
        if record.app_class.startswith(_LISTED) and self._by is not None:
            claim = self._acting(self._by, record.dst) or self._acting(self._by, record.src)
            return str(self._by.image.classes[claim.class_]) if claim is not None else record.app_class
        return record.app_class

    @staticmethod
    def _acting(by: Attribution, address: bytes) -> Decision | None:
        """The entry that decides about an address; None without one."""
        claims = by.image.lookup_address(address) if len(address) in (4, 16) else ()
        return next((claim for claim in claims if str(by.image.classes[claim.class_]) in by.actions), None)

    def _name(self, client: bytes, mac: str, now: float) -> str:
        """The name of a client in [dns] hosts, by this address or another one of the same machine; empty without one."""
        names_ = self._by.clients if self._by is not None else {}
        if not names_:
            return ""
        name = names_.get(_text(client))
        return name or next((names_[each] for each in self._neighbours.addresses(mac, now) if each in names_), "")

    def _decision(self, record: Record, now: float) -> tuple[bool, events.Event]:
        """(whether the client sent the packet, what decided): the deciding address is the destination or the source."""
        learnt = record.app_class.startswith(_LEARNT)
        class_ = Class(*self._class(record, now).split("/", 1))
        for outward, address in ((True, record.dst), (False, record.src)):
            if self._by is None or len(address) not in (4, 16):
                continue
            for claim in self._by.image.lookup_address(address):
                if self._by.image.classes[claim.class_] == class_:
                    return outward, _listed(self._by.image, claim)
            reason = self._book.reason(address, now) if learnt else None
            if reason is not None:
                return outward, {"list": reason.list, "line": reason.line, "rule": reason.rule, "learnt": True}
        return True, {}  # a rule about ports or content

    def begin(self, counted: Mapping[str, int]) -> None:
        """Report what the counters of these classes count from here on; of those that were reported before, all."""
        self.read()
        for class_, packets in counted.items():
            if class_ not in self._balances:
                self._balances[class_] = _Balance(packets - self._records[class_], packets)

    def reconcile(self, counted: Mapping[str, int]) -> None:
        """Report packets that the kernel counted and has no record of: beyond the rate, or not delivered.

        `counted`: packets by class, read a moment ago, so that their records have come, and not before those of the last call.
        What was counted before this process first looked is left out: another process reported it.
        """
        for class_, packets in counted.items():
            read = self._records[class_]
            balance = self._balances.get(class_)
            if balance is None:
                continue
            if packets < balance.packets:  # another table, whose counters began at 0
                balance.offset = -read - balance.unlogged
            balance.packets = packets
            missing = packets - balance.offset - read - balance.unlogged
            if missing > 0:
                balance.unlogged += missing
                event = events.ordered("drop", self._about(class_) | {"count": missing, "unlogged": True})
                self._outbox.add(events.encode(event, time.time()), 0)

    def _about(self, class_: str) -> events.Event:
        """The members that all events of a class have in common."""
        app, _, function = class_.partition("/")
        audited = class_ in (f"{_LEARNT}audit", f"{_LISTED}audit") or (
            self._by is not None and self._by.actions.get(class_) is Action.AUDIT
        )
        return {
            "action": "pass" if audited else "reject", "mode": "audit" if audited else "block",
            "app": app, "function": function, "generation": self._by.generation if self._by is not None else 0,
        }  # fmt: skip

    def _tick(self) -> None:
        for line, count in self._folder.due(self._loop.time()):
            self._outbox.add(line, count)
        self._loop.call_later(1.0, self._tick)

    def flush(self) -> None:
        """Write what was folded and not written yet."""
        self.read()
        for line, count in self._folder.flush():
            self._outbox.add(line, count)


def _ordered(members: events.Event) -> str:
    return events.fragment(events.ordered("drop", members))


def _listed(image: Image, decision: Decision) -> events.Event:
    return {"list": image.sources[decision.source].path, "line": decision.line, "rule": decision.rule}


def _text(address: bytes) -> str:
    return str(ipaddress.ip_address(address))
