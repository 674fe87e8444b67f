"""The only process that may change the firewall. It parses netlink and nothing else.

The supervisor sends what is to be enforced: the policy image as a descriptor, the switchboard, the firewall's settings.
The guardian lays it down, reads the drop log and gives it attribution. When the supervisor is gone it ends and leaves the
rules where they are: what the kernel does without us stands in the rules.
"""

import asyncio
import contextlib
import dataclasses
import ipaddress
import mmap
import os
import socket
import sys
import time
from collections import Counter
from collections.abc import Sequence
from typing import Any

from embargo import events, nft, ruleset
from embargo.daemon import privileges
from embargo.daemon.channel import Channel, orders
from embargo.daemon.netlink import Nftables
from embargo.daemon.nflog import NfLog, Record
from embargo.daemon.outbox import Ledger, Outbox
from embargo.errors import FirewallError
from embargo.image import Image
from embargo.policy import Action, Class, Decision, Switchboard

HEAL = 0.2  # seconds between two looks at the kernel's generation
PASS_GRACE = 60  # seconds; clients connect a moment after an answer, also after one with TTL 0, and flows last
PROTOCOLS = {1: "icmp", 6: "tcp", 17: "udp", 58: "icmpv6", 132: "sctp"}


class Guardian:
    def __init__(self, channel: Channel, ledger: Ledger) -> None:
        self._channel = channel
        self._loop = asyncio.get_running_loop()
        self._kernel = Nftables()
        self._wanted: ruleset.Spec | None = None
        self._chains: tuple[ruleset.Chain, ...] = ()
        self._seen = 0  # the kernel's generation after our own last look
        self._log: NfLog | None = None
        self._group = -1
        self._image: Image | None = None
        self._board = Switchboard(())
        self._generation = 0
        self._actions: dict[str, Action] = {}
        self._folder = events.Folder()
        self._outbox = Outbox(self._send_events, ledger)
        self.hits: Counter[str] = Counter()
        self._tick()
        self._heal()

    def report(self, message: dict[str, Any]) -> bool:
        try:
            self._channel.send(message)
        except BlockingIOError:
            return False
        except OSError:
            return True  # nobody is left to tell
        return True

    def _send_events(self, lines: bytes, lost: int) -> bool:
        try:
            self._channel.send_events(lines, lost)
        except BlockingIOError:
            return False
        except OSError:
            return True
        return True

    # ── orders ───────────────────────────────────────────────────────────────────────────────────────────────────────

    def apply(self, order: dict[str, Any], fd: int) -> dict[str, Any]:
        """Put a generation in force. FirewallError leaves the old one there."""
        try:
            image = Image(memoryview(mmap.mmap(fd, 0, prot=mmap.PROT_READ)))
        finally:
            os.close(fd)
        board = Switchboard(tuple(map(Action, order["switchboard"])))
        wanted = ruleset.spec(
            image, board, self._next_mark(), lan=order["lan"], except_=order["except"],
            intercept_port=order["intercept_port"], fail=order["fail"], log_group=order["log_group"],
        )  # fmt: skip
        self._listen(order["log_group"])
        table = ruleset.build(wanted)
        self._kernel.replace(table)
        self._wanted, self._chains, self._seen = wanted, table.chains, self._kernel.generation_id()
        self._image, self._board, self._generation = image, board, order["generation"]
        self._actions = {str(class_): action for class_, action in wanted.classes}
        if order["fail"] == "open":
            self.alive()
        return {"elements": len(wanted.ranges)}

    def _next_mark(self) -> int:
        """What tells the new sets from those in force. Not the generation: a new guardian applies the same one again."""
        marks = [name.rpartition("_")[2] for name in self._kernel.sets(ruleset.TABLE)]
        return 1 + max((int(mark) for mark in marks if mark.isascii() and mark.isdecimal()), default=0)

    def _listen(self, group: int) -> None:
        """Read the drop log before anything can be dropped."""
        if group == self._group:
            return
        log = NfLog(group)
        if self._log is not None:
            self._loop.remove_reader(self._log.fileno())
            self._log.close()
        self._log, self._group = log, group
        self._loop.add_reader(log.fileno(), self._readable)

    def pass_addresses(self, addresses: Sequence[tuple[str, int]]) -> None:
        """Addresses behind names on the allow list go ahead of the block sets for so many seconds, and a grace."""
        for name, width in (("allow4", 4), ("allow6", 16)):
            keys = [(bytes.fromhex(a), seconds + PASS_GRACE) for a, seconds in addresses if len(a) == 2 * width]
            if keys:
                self._kernel.transact(nft.timed_elements(ruleset.TABLE, name, keys))

    def passing(self, address: bytes) -> bool:
        """Does this address go ahead of the block sets just now?"""
        return address in self._kernel.keys(ruleset.TABLE, "allow4" if len(address) == 4 else "allow6")

    def alive(self) -> None:
        """Somebody answers: for the next seconds port 53 may be redirected (fail = "open")."""
        messages = nft.alive(ruleset.TABLE, self._wanted.lan) if self._wanted is not None else []
        if messages:
            self._kernel.transact(messages)

    def _heal(self) -> None:
        """Somebody may have flushed the ruleset: lay ours down again. Asking for the kernel's generation costs microseconds."""
        self._loop.call_later(HEAL, self._heal)
        if self._wanted is None:
            return
        try:
            if self._kernel.generation_id() == self._seen:
                return
            if not self._kernel.intact(ruleset.TABLE, self._chains):
                self._restore(self._wanted)
            self._seen = self._kernel.generation_id()
        except FirewallError as error:
            self._outbox.add(events.encode({"event": "firewall", "what": f"table missing: {error}"}, time.time()))

    def _restore(self, wanted: ruleset.Spec) -> None:
        what = "rules changed" if self._kernel.has_table(ruleset.TABLE) else "table removed"
        self._kernel.replace(ruleset.build(dataclasses.replace(wanted, generation=self._next_mark())))
        self._outbox.add(events.encode({"event": "firewall", "what": f"{what} by others, restored"}, time.time()))

    def stats(self) -> dict[str, Any]:
        return {
            "counters": {name: list(both) for name, both in self._kernel.counters(ruleset.TABLE).items()},
            "present": self._kernel.has_table(ruleset.TABLE),
            "hits": dict(self.hits),
            "lost": self._log.lost if self._log else 0,
        }

    async def stop(self, rules: str) -> None:
        """`rules`: keep all of them, keep the block sets but not the redirect, or remove everything."""
        self._wanted = None
        if self._log is not None:
            self._readable()
        if rules == "remove":
            self._kernel.remove(ruleset.TABLE)
        elif rules == "unredirect":
            self._kernel.transact([nft.flush_set(ruleset.TABLE, "alive")])
        for line, count in self._folder.flush():
            self._outbox.add(line, count)
        await self._outbox.empty(1.0)

    # ── the drop log ─────────────────────────────────────────────────────────────────────────────────────────────────

    def _readable(self) -> None:
        assert self._log is not None
        now, wall = self._loop.time(), time.time()
        for record in self._log.read():
            self._note(record, now, wall)
        self._outbox.noted(self._folder.noted)

    def _note(self, record: Record, now: float, wall: float) -> None:
        self.hits[record.app_class] += 1
        key = (record.src, record.dst, record.proto, record.dport, record.app_class, self._generation)
        line = self._folder.note(key, lambda: self._members(record), now, wall)
        if line is not None:
            self._outbox.add(line)

    def _members(self, record: Record) -> str:
        app, _, function = record.app_class.partition("/")
        action = self._actions.get(record.app_class, Action.BLOCK)
        outward, decision = self._decision(record)
        client, other = (record.src, record.dst) if outward else (record.dst, record.src)
        event: events.Event = {"event": "drop", "client": _text(client)}
        if record.mac and outward:
            event["client_mac"] = record.mac
        event |= {
            "dst": _text(other), "dport": record.dport if outward else record.sport,
            "proto": PROTOCOLS.get(record.proto, str(record.proto)),
            "action": "pass" if action is Action.AUDIT else "reject", "mode": "audit" if action is Action.AUDIT else "block",
            "app": app, "function": function,
        }  # fmt: skip
        if decision is not None and self._image is not None:
            source = self._image.sources[decision.source]
            event |= {"list": source.path, "line": decision.line, "rule": decision.rule}
        return events.fragment(event | {"generation": self._generation})

    def _decision(self, record: Record) -> tuple[bool, Decision | None]:
        """(did the client send it, the entry that decided): the listed address is the destination or the source."""
        app, _, function = record.app_class.partition("/")
        for outward, address in ((True, record.dst), (False, record.src)):
            if self._image is None or len(address) not in (4, 16):
                continue
            for claim in self._image.lookup_address(address):
                if self._image.classes[claim.class_] == Class(app, function):
                    return outward, claim
        return True, None  # a rule about ports

    def _tick(self) -> None:
        for line, count in self._folder.due(self._loop.time()):
            self._outbox.add(line, count)
        self._loop.call_later(1.0, self._tick)


def _text(address: bytes) -> str:
    return str(ipaddress.ip_address(address))


async def obey(guardian: Guardian, order: dict[str, Any], fds: list[int]) -> dict[str, Any]:
    """Carry out one order; the members of the answer."""
    match order["op"]:
        case "apply":
            return guardian.apply(order, fds[0])
        case "pass":
            guardian.pass_addresses([(a, s) for a, s in order["addresses"]])
        case "alive":
            guardian.alive()
        case "passing":
            return {"passing": guardian.passing(bytes.fromhex(order["address"]))}
        case "stats":
            return guardian.stats()
        case "stop":
            await guardian.stop(order["rules"])
    return {}


async def serve(channel: Channel, ledger: Ledger) -> None:
    privileges.keep((privileges.CAP_NET_ADMIN,))
    async with contextlib.aclosing(orders(channel)) as inbox:
        guardian = Guardian(channel, ledger)
        async for order, fds in inbox:
            try:
                answer = {"op": "done", "id": order.get("id"), **await obey(guardian, order, fds)}
            except FirewallError as error:
                answer = {"op": "error", "id": order.get("id"), "error": str(error)}
            while order.get("id") is not None and not guardian.report(answer):  # drops may have filled the channel
                await asyncio.sleep(0.01)
            if order["op"] == "stop":
                return


def main() -> None:
    asyncio.run(serve(Channel(socket.socket(fileno=int(sys.argv[1]))), Ledger(int(sys.argv[2]))))


if __name__ == "__main__":
    main()
