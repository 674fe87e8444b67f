"""The drop log: what the kernel tells of packets that met a rule of ours, as events that say who, what and why."""

import asyncio
import ipaddress
import time
from collections import Counter
from collections.abc import Mapping
from typing import NamedTuple

from embargo import events, names
from embargo.daemon.neighbours import Neighbours
from embargo.daemon.nflog import NfLog, Record
from embargo.daemon.outbox import Outbox
from embargo.image import Image
from embargo.learning import Book
from embargo.policy import Action, Class, Decision

PROTOCOLS = {1: "icmp", 6: "tcp", 17: "udp", 58: "icmpv6", 132: "sctp"}


class Attribution(NamedTuple):
    """What a record is explained by: the policy that the kernel enforces."""

    generation: int
    image: Image
    actions: Mapping[str, Action]
    clients: Mapping[str, str]  # names of clients by address, from local records


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
        self.hits: Counter[str] = Counter()
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
            self.hits[record.app_class] += 1
            key = (record.src, record.dst, record.proto, record.dport, record.app_class)
            line = note(key, lambda record=record: self._members(record, now), now, wall)  # type: ignore[misc]
            if line is not None:
                self._outbox.add(line)
        self._outbox.noted(self._folder.noted)

    def _members(self, record: Record, now: float) -> str:
        app, _, function = record.app_class.partition("/")
        by = self._by
        action = by.actions.get(record.app_class, Action.BLOCK) if by is not None else Action.BLOCK
        outward, decision = self._decision(record, now)
        client, other = (record.src, record.dst) if outward else (record.dst, record.src)
        event: events.Event = {"event": "drop", "client": _text(client)}
        if mac := record.mac if outward else self._neighbours.mac(client, now):
            event["client_mac"] = mac
        if name := self._name(client, mac, now):
            event["client_name"] = name
        led = [names.to_text(each) for each in reversed(self._book.names(other))]
        event |= {
            "dst": _text(other), "dport": record.dport if outward else record.sport,
            "proto": PROTOCOLS.get(record.proto, str(record.proto)),
            "action": "pass" if action is Action.AUDIT else "reject", "mode": "audit" if action is Action.AUDIT else "block",
            "app": app, "function": function, "names": led,
        }  # fmt: skip
        if not led:
            event["direct"] = True  # no name that we answered led there
        event |= decision
        return events.fragment(event | {"generation": by.generation if by is not None else 0})

    def _name(self, client: bytes, mac: str, now: float) -> str:
        """What a client is called in the local records, by this address or another one of the same machine."""
        known = self._by.clients if self._by is not None else {}
        if not known:
            return ""
        text = _text(client)
        return known.get(text) or next((known[a] for a in self._neighbours.addresses(mac, now) if a in known), "")

    def _decision(self, record: Record, now: float) -> tuple[bool, events.Event]:
        """(did the client send it, what decided): the listed or learnt address is the destination or the source."""
        app, _, function = record.app_class.partition("/")
        class_ = Class(app, function)
        for outward, address in ((True, record.dst), (False, record.src)):
            if self._by is None or len(address) not in (4, 16):
                continue
            for claim in self._by.image.lookup_address(address):
                if self._by.image.classes[claim.class_] == class_:
                    return outward, _listed(self._by.image, claim)
            reason = self._book.reason(address, now)
            if reason is not None and reason.class_ == class_:
                return outward, {"list": reason.list, "line": reason.line, "rule": reason.rule, "learnt": True}
        return True, {}  # a rule about ports or content

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
