"""The drop log: what the kernel tells of packets that met a rule of ours, as events that say who, what and why."""

import asyncio
import ipaddress
import time
from collections import Counter
from collections.abc import Mapping
from functools import partial
from typing import NamedTuple

from embargo import events, names
from embargo.daemon.guard.neighbours import Neighbours
from embargo.daemon.guard.nflog import NfLog, Record
from embargo.daemon.process.outbox import Outbox
from embargo.firewall.learning import Book
from embargo.lists.image import Image
from embargo.lists.policy import Action, Class, Decision

PROTOCOLS = {1: "icmp", 6: "tcp", 17: "udp", 58: "icmpv6", 132: "sctp"}

_LEARNT = "learnt/"  # what the classes of learnt addresses begin with, see `ruleset.LEARNT`
_LISTED = "listed/"  # the same of very many listed ones, see `ruleset.LISTED`


class Attribution(NamedTuple):
    """What a record is explained by: the policy that the kernel enforces."""

    generation: int
    image: Image
    actions: Mapping[str, Action]
    clients: Mapping[str, str]  # names of clients by address, from local records


class _Account:
    """Packets of a class that the kernel counted, against those that the log tells of."""

    __slots__ = ("offset", "packets", "told")

    def __init__(self, offset: int, packets: int) -> None:
        self.offset = offset  # packets that are not ours to tell
        self.packets = packets  # when we last looked
        self.told = 0  # without a record


class DropLog:
    def __init__(self, outbox: Outbox, book: Book) -> None:
        self._loop = asyncio.get_running_loop()
        self._outbox = outbox
        self._book = book
        self._log: NfLog | None = None
        self._group = -1
        self._by: Attribution | None = None
        self._folder = events.Folder()
        self._neighbours = Neighbours()
        self._records: Counter[str] = Counter()  # by class of the rule
        self.hits: Counter[str] = Counter()  # by class of the entry or name
        self._accounts: dict[str, _Account] = {}
        self._tick()

    @property
    def lost(self) -> int:
        """Records that the kernel had to throw away."""
        return self._log.lost if self._log is not None else 0

    @property
    def noted(self) -> int:
        """Packets that the kernel told of."""
        return self._folder.noted

    def listen(self, group: int) -> None:
        """Read this group from now on: before anything can be dropped."""
        if group == self._group:
            return
        log = NfLog(group)
        if self._log is not None:
            self._loop.remove_reader(self._log.fileno())
            self._log.close()
        self._log, self._group = log, group
        self._loop.add_reader(log.fileno(), self.read)

    def explain_by(self, attribution: Attribution) -> None:
        self._by = attribution

    def read(self) -> None:
        """Take what is there, a bounded batch of it."""
        if self._log is None:
            return
        now, wall = self._loop.time(), time.time()
        note = self._folder.note
        for record in self._log.read():
            self._records[record.app_class] += 1
            self.hits[self._class(record, now)] += 1
            key = (record.src, record.dst, record.proto, record.dport, record.app_class)
            line = note(key, partial(self._members, record, now), now, wall)
            if line is not None:
                self._outbox.add(line)
        self._outbox.noted(self._folder.noted)

    def _members(self, record: Record, now: float) -> str:
        outward, decision = self._decision(record, now)
        class_ = self._class(record, now)
        client, other = (record.src, record.dst) if outward else (record.dst, record.src)
        event = self._about(class_) | {"client": _text(client)}
        if mac := record.mac if outward else self._neighbours.mac(_text(client), now):
            event["client_mac"] = mac
        if name := self._name(client, mac, now):
            event["client_name"] = name
        led = [names.to_text(each) for each in reversed(self._book.names(other))]
        event |= {
            "dst": _text(other), "dport": record.dport if outward else record.sport,
            "proto": PROTOCOLS.get(record.proto, str(record.proto)), "names": led,
        }  # fmt: skip
        if not led:
            event["direct"] = True  # no name that we answered led there
        return events.fragment(event | decision)

    def _class(self, record: Record, now: float) -> str:
        """The app and function that an attempt is put down to: a learnt address is its name's, one of many its list's."""
        if record.app_class.startswith(_LEARNT):
            reason = self._book.reason(record.dst, now) or self._book.reason(record.src, now)
            return str(reason.class_) if reason is not None else record.app_class
        if record.app_class.startswith(_LISTED) and self._by is not None:
            claim = self._acting(self._by, record.dst) or self._acting(self._by, record.src)
            return str(self._by.image.classes[claim.class_]) if claim is not None else record.app_class
        return record.app_class

    @staticmethod
    def _acting(by: Attribution, address: bytes) -> Decision | None:
        """The entry that decides about an address."""
        claims = by.image.lookup_address(address) if len(address) in (4, 16) else ()
        return next((claim for claim in claims if str(by.image.classes[claim.class_]) in by.actions), None)

    def _name(self, client: bytes, mac: str, now: float) -> str:
        """What a client is called in the local records, by this address or another one of the same machine."""
        known = self._by.clients if self._by is not None else {}
        if not known:
            return ""
        text = _text(client)
        return known.get(text) or next((known[a] for a in self._neighbours.addresses(mac, now) if a in known), "")

    def _decision(self, record: Record, now: float) -> tuple[bool, events.Event]:
        """(did the client send it, what decided): the listed or learnt address is the destination or the source."""
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
        """What these classes count from here on is ours to tell, if it was not before."""
        self.read()
        for class_, packets in counted.items():
            if class_ not in self._accounts:
                self._accounts[class_] = _Account(packets - self._records[class_], packets)

    def reconcile(self, counted: Mapping[str, int]) -> None:
        """Tell of packets that the kernel counted and gave no record of: beyond the rate, or thrown away.

        `counted`: packets by class, read a moment ago, so that their records have come; and not before what was compared
        last. What was counted before this process first looked is not its to tell.
        """
        for class_, packets in counted.items():
            read = self._records[class_]
            account = self._accounts.get(class_)
            if account is None:
                continue
            if packets < account.packets:  # the table is another one, and counts anew
                account.offset = -read - account.told
            account.packets = packets
            missing = packets - account.offset - read - account.told
            if missing > 0:
                account.told += missing
                self._outbox.add(events.encode(self._about(class_) | {"count": missing, "unlogged": True}, time.time()), 0)

    def _about(self, class_: str) -> events.Event:
        """What every drop of a class has in common."""
        app, _, function = class_.partition("/")
        audited = class_ in (f"{_LEARNT}audit", f"{_LISTED}audit") or (
            self._by is not None and self._by.actions.get(class_) is Action.AUDIT
        )
        return {
            "event": "drop", "action": "pass" if audited else "reject", "mode": "audit" if audited else "block",
            "app": app, "function": function, "generation": self._by.generation if self._by is not None else 0,
        }  # fmt: skip

    def _tick(self) -> None:
        for line, count in self._folder.due(self._loop.time()):
            self._outbox.add(line, count)
        self._loop.call_later(1.0, self._tick)

    def flush(self) -> None:
        """The last words."""
        self.read()
        for line, count in self._folder.flush():
            self._outbox.add(line, count)


def _listed(image: Image, decision: Decision) -> events.Event:
    return {"list": image.sources[decision.source].path, "line": decision.line, "rule": decision.rule}


def _text(address: bytes) -> str:
    return str(ipaddress.ip_address(address))
