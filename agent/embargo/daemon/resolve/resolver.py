"""One worker: sockets around one Engine.

Started by the supervisor with one end of a channel. Everything it may touch comes over that channel: its sockets and the
policy image as descriptors, its settings as a message. After `start` it has no privilege left, and between generations it
needs nothing from the supervisor.
"""

import asyncio
import contextlib
import gc
import mmap
import os
import resource
import socket
import sys
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

from embargo import names
from embargo.daemon.process import privileges
from embargo.daemon.process.answered import Marks
from embargo.daemon.process.channel import Channel, Events, Failed, orders
from embargo.daemon.process.outbox import Ledger, Outbox
from embargo.daemon.process.sightings import TO_RESOLVER
from embargo.daemon.resolve import intake
from embargo.daemon.resolve.attempts import Attempts
from embargo.daemon.resolve.forward import Forwarder
from embargo.daemon.resolve.orders import (
    ORDERS,
    Adopt,
    Counted,
    Judgement,
    Meet,
    Settings,
    Start,
    Stats,
    Stop,
)
from embargo.daemon.resolve.selector import Selector
from embargo.daemon.resolve.stream import Connection, Streams
from embargo.daemon.resolve.witness import Witness
from embargo.dns.acl import Acl
from embargo.dns.cache import Cache, Entry
from embargo.dns.engine import Drop, Engine, Joined, Reply, Settled
from embargo.dns.judgement import BlockMode, Rules
from embargo.dns.questions import Forward, KeepWaiting
from embargo.dns.upstream import Strip, Upstreams, server
from embargo.dns.zones import Zones
from embargo.lists import lists
from embargo.lists.image import Image
from embargo.lists.policy import Action, Switchboard
from embargo.records import Done
from embargo.report import UpstreamStats

RUBBISH = 20_000, 20, 50  # containers between collections: we make few cycles and hold many containers
PATIENCE = 0.2  # seconds between two looks for clients that have waited too long
AT_ONCE, PAUSE = 200, 0.02  # cached answers told a new guardian at once, a millisecond or two; seconds between
PASS_PATIENCE = 1.0  # seconds a reply waits for the firewall to let its addresses through: clients ask again after five
ANSWER_TRIES = 500  # hundredths of a second that an answer waits for the supervisor to read
MAX_FILE = 1 << 20  # octets: the ledger, an answer in memory, what goes to stderr. Whoever takes us over must not fill a disk
LAST_BATCHES = 64  # of queries that wait in a socket when the worker stops; in a flood the rest is the next worker's
LAST_WORDS = 1.0  # seconds for what is on its way when the worker stops, and again for its events

SendEvents = Callable[[bytes, int, int], bool]  # lines, the events lost before them, the attempts that all stands for


class Resolver:
    """Answers queries by one judgement until it is given the next."""

    def __init__(self, send_events: SendEvents, ledger: Ledger | None, selector: Selector | None = None) -> None:
        self._loop = asyncio.get_running_loop()
        # queries are answered where the loop waits: it has to be woken
        self._cache = Cache(on_wanted=lambda: self._loop.call_soon_threadsafe(self._refresh))
        self._judged = 0
        self._engine: Engine | None = None
        self._forwarder = Forwarder(self._completed, self._expired)
        self._selector = selector  # the loop's, if it takes queries by itself
        self._listeners: list[intake.Listener] = []
        self._streams = Streams(lambda client: self.engine.acl.allows(client), self._stream_query)
        self._attempts = Attempts(Outbox(send_events, ledger))
        self._witness = Witness(self._shadow, self.passed)
        self._attempts.curious = self._witness.curious
        self._intake = intake.make(self._cache, self._attempts)
        self._allow_from: tuple[str, ...] = ()
        self._log_names = "blocked"
        self._number = 0
        self._patience: asyncio.TimerHandle | None = None
        self._telling: asyncio.TimerHandle | None = None
        self._held_back: dict[int, list[Reply]] = {}
        self.counters: Counter[str] = Counter()

    @property
    def engine(self) -> Engine:
        assert self._engine is not None, "adopt comes first"
        return self._engine

    def adopt(self, image: Image, judgement: Judgement, settings: Settings | None) -> None:
        """Judge by this from the next packet on. Without `settings` the ones from before stay."""
        if settings is not None:
            mode, zones = block_mode(settings), zones_from(settings)
            self._allow_from = settings.allow_from
            self._log_names = settings.log_names
            self._witness.learning = settings.learn
            self._forwarder.pipelines.trust_authorities(settings.tls_ca)
        elif self._engine is not None:
            mode, zones = self._engine.rules.mode, None
        else:
            raise ValueError("the first judgement needs the settings")

        def rules_by(board: Switchboard, acl: Acl) -> Rules:
            self._judged += 1
            return Rules(judgement.generation, self._judged, acl, image, board, mode, self._log_names == "all")

        everybody = Acl(self._allow_from)
        exempt = judgement.exempt
        apart = Acl(self._allow_from, but=[each.network for each in exempt]) if exempt else everybody
        rules = rules_by(judgement.board, apart)
        others = [(Acl([each.network]), rules_by(each.board, everybody)) for each in exempt]
        if self._engine is None:
            assert zones is not None
            self._engine = Engine(rules, zones, self._cache)
        self._engine.adopt(rules, zones, others, everybody)
        self._listen_in()
        self._attempts.adopt(rules, names=self._log_names != "none")
        self._intake.adopt(rules)
        self._tell_all_again()  # what was answered till now may lead to addresses that are blocked from now on

    def meet(self, channel: Channel, marks: int) -> None:
        """The guardian is at the other end, or the next one; `marks`: the descriptor of the page that it writes."""
        self._witness.meet(channel, Marks(marks))
        self._listen_in()
        self._tell_all_again()  # it knows nothing of what was answered before it came

    def _tell_all_again(self) -> None:
        """What clients were given and still use. The guardian hears of it as if it were answered now."""
        if self._telling is not None:
            self._telling.cancel()
            self._telling = None
        if self._witness.listening:
            self._tell_again(self._cache.live(self._loop.time()))

    def _tell_again(self, entries: list[Entry]) -> None:
        """A few at a time."""
        if entries and self._engine is not None and self._witness.listening:
            self._engine.note_cached(entries[-AT_ONCE:])
            self._hear([])
            self._telling = self._loop.call_later(PAUSE, self._tell_again, entries[:-AT_ONCE])

    def _listen_in(self) -> None:
        if self._engine is not None and self._witness.listening and self._engine.resolved is None:
            self._engine.resolved = []

    async def listen(self, udp: list[socket.socket], tcp: list[socket.socket]) -> None:
        for sock in udp:
            listener = intake.Listener(sock)
            self._listeners.append(listener)
            if self._selector is None:
                self._loop.add_reader(sock, self._readable, listener)
        if self._selector is not None:
            self._selector.listen(self._listeners, self._intake, self._taken)
        for sock in tcp:
            await self._streams.listen(sock)

    def _readable(self, listener: intake.Listener) -> int:
        """Take a batch; how many were there."""
        drained = self._intake.drain(listener, self._loop.time(), time.time())
        self._taken(drained)
        return drained[1]

    def _taken(self, drained: intake.Drained) -> None:
        """What is left to do about a batch."""
        declined, taken = drained
        now = self._loop.time()
        self.counters["queries_udp"] += taken
        self.counters["fast"] += taken - len(declined)
        for packet in declined:
            self._dispatch(self.engine.handle(packet.data, packet.client, packet.way, now), now)

    def _refresh(self) -> None:
        """Ask for what the cache wants to have fetched anew."""
        now = self._loop.time()
        for forward in self.engine.refresh(now):
            self._dispatch(forward, now)

    def _stream_query(self, packet: bytes, client: str, connection: Connection) -> bool:
        now = self._loop.time()
        self.counters["queries_tcp"] += 1
        outcome = self.engine.handle(packet, client, connection, now, udp=False)
        self._dispatch(outcome, now)
        return not isinstance(outcome, Drop)

    def _dispatch(self, outcome: Reply | Forward | Joined | Drop, now: float) -> None:
        match outcome:
            case Reply():
                self._deliver(outcome, now)
            case Forward():
                self.counters["upstream_queries"] += 1
                self._forwarder.start(outcome)
                if self._patience is None:
                    self._patience = self._loop.call_later(PATIENCE, self._impatient)
            case Drop(reason):
                self.counters[f"dropped_{reason}"] += 1
            case Joined():
                self.counters["joined"] += 1

    def _impatient(self) -> None:
        """Give out old answers to those who wait too long for a new one, as long as anybody waits."""
        self._patience = None
        self._settled(Settled(self.engine.reply_stale(self._loop.time())), self._loop.time())
        if self.engine.pending and self._patience is None:
            self._patience = self._loop.call_later(PATIENCE, self._impatient)

    def _deliver(self, reply: Reply, now: float) -> None:
        if reply.passing and self._pass(reply):
            return
        reply.peer.send(reply.wire)  # type: ignore[attr-defined] # a Way or a Connection: what `handle` was given
        if reply.attempt is not None:
            self._attempts.note(((reply.client, reply.attempt),), now, time.time())

    def _pass(self, reply: Reply) -> bool:
        """Hold a reply until its addresses pass the firewall, or the client would come too early. False: do not wait."""
        number = self._number = self._number + 1
        if not self._witness.ask_to_pass(number, reply.passing):
            return False
        self._hold(number, [reply._replace(passing=())])
        return True

    def _hold(self, number: int, replies: list[Reply]) -> None:
        self._held_back[number] = replies
        self._loop.call_later(PASS_PATIENCE, self.passed, number)

    def passed(self, number: int) -> None:
        """The firewall lets the addresses of these replies through, or has been waited for long enough."""
        for reply in self._held_back.pop(number, ()):
            self._deliver(reply, self._loop.time())

    def _shadow(self, name: names.Name, qtype: int) -> bool:
        """Look up what is behind a blocked name; False when it is not blocked any more."""
        now, rules = self._loop.time(), self.engine.rules
        if rules.board.choose(rules.image.lookup(name))[0] is Action.PASS:
            return False
        forward = self.engine.look_behind(name, qtype, now)
        if forward is not None:
            self._dispatch(forward, now)
        return True

    def _completed(self, token: int, packet: bytes) -> bool:
        now = self._loop.time()
        outcome = self.engine.complete(token, packet, now)
        if isinstance(outcome, KeepWaiting):
            return False
        self._settled(outcome, now)
        return True

    def _expired(self, token: int, reason: str, network: bool) -> None:
        now = self._loop.time()
        self._settled(self.engine.expire(token, reason, now, network=network), now)

    def _settled(self, outcome: Settled | Forward, now: float) -> None:
        if isinstance(outcome, Forward):
            self._dispatch(outcome, now)
            return
        if self.engine.resolved and self._hear(outcome.replies):
            return
        for reply in outcome.replies:
            self._deliver(reply, now)

    def _hear(self, replies: list[Reply]) -> bool:
        """Tell the guardian what an upstream answered. True: the replies wait, an address in them was blocked till now."""
        assert self.engine.resolved is not None
        held = False
        for heard in self.engine.resolved:
            if self._witness.hear(heard, self.engine.rules):
                number = self._number = self._number + 1
                if self._witness.ask_to_free(number, heard) and replies:
                    self._hold(number, replies)
                    held = True
        self.engine.resolved.clear()
        return held

    def stats(self) -> Counted:
        """What was counted since the start, and the health of the upstreams."""
        upstreams = [self.engine.zones.default, *self.engine.zones.forward.values()]
        counters = {
            "mismatched": self._forwarder.mismatched, "pending": self.engine.pending,
            "looked_up": self._witness.counters["looked_up"], "untold": self._witness.counters["untold"],
            "dropped_tcp_limit": self._streams.turned_away, "unsent": sum(listener.unsent for listener in self._listeners),
        }  # fmt: skip
        cache = {
            "entries": len(self._cache), "octets": self._cache.octets, "hits": self._cache.hits, "misses": self._cache.misses,
            "stale": self.engine.stale, "refreshed": self.engine.refreshed,
        }  # fmt: skip
        return Counted(
            dict(self.counters) | counters,
            self._attempts.hits,
            cache,
            tuple(
                UpstreamStats(
                    str(server), health.asked, health.failed, health.healthy, round(health.srtt * 1000, 2), health.last_error
                )
                for group in upstreams
                for server, health in group.health.items()
            ),
        )

    async def stop(self) -> None:
        """Take no more, answer what is held (for at most a second), hand over the events."""
        if self._selector is not None:
            self._selector.leave()
        for listener in self._listeners:
            if self._selector is None:
                self._loop.remove_reader(listener.sock)
            for _ in range(LAST_BATCHES):
                if self._readable(listener) < intake.BATCH:
                    break
        self._streams.stop_listening()
        deadline = self._loop.time() + LAST_WORDS
        while self._engine is not None and (self.engine.pending or self._held_back) and self._loop.time() < deadline:
            await asyncio.sleep(0.02)
        if self._patience is not None:
            self._patience.cancel()
        self._forwarder.close()
        await self._streams.close()
        for listener in self._listeners:
            listener.sock.close()
        self._witness.stop()
        await self._attempts.stop(LAST_WORDS)


def block_mode(settings: Settings) -> BlockMode:
    mode, ttl = settings.block_mode, settings.block_ttl
    if mode == "null":
        return BlockMode("null", ttl, (bytes(4),), (bytes(16),))
    if isinstance(mode, str):
        return BlockMode(mode, ttl)
    packed = [_packed(address) for address in mode]
    return BlockMode("address", ttl, tuple(p for p in packed if len(p) == 4), tuple(p for p in packed if len(p) == 16))


def _packed(address: str) -> bytes:
    return lists.address_to_int(address).to_bytes(16 if ":" in address else 4)


def zones_from(settings: Settings) -> Zones:
    """The zones that the engine answers and forwards."""
    hosts: dict[names.Name, tuple[bytes, ...]] = {}
    reverse: dict[names.Name, names.Name] = {}
    for text, addresses in settings.hosts.items():
        name = names.from_text(text)
        hosts[name] = tuple(map(_packed, addresses))
        for packed in hosts[name]:
            reverse.setdefault(names.reverse(packed), name)
    # a zone's own servers may answer with private addresses: who names them wants what they say
    own = Strip(ech=settings.strip_ech)
    return Zones(
        Upstreams(tuple(map(server, settings.upstream)), own._replace(private=settings.rebind)),
        {names.from_text(zone): Upstreams(tuple(map(server, to)), own) for zone, to in settings.forward.items()},
        hosts,
        reverse,
    )


def _image(fd: int) -> Image:
    """The image behind a descriptor, which is closed. It is not verified: the supervisor has done that."""
    try:
        return Image(memoryview(mmap.mmap(fd, 0, prot=mmap.PROT_READ)), trusted=True)
    finally:
        os.close(fd)


async def serve(channel: Channel, ledger: Ledger | None = None, selector: Selector | None = None) -> None:
    """A resolver's life: orders until Stop, or until the supervisor is gone."""

    def send(record: object, number: int | None = None) -> bool:
        """False: the supervisor does not read at the moment."""
        try:
            channel.send(record, number=number)
        except BlockingIOError:
            return False
        except OSError:
            return True  # the supervisor is gone; the reader sees the end of the channel
        return True

    resolver = Resolver(lambda lines, lost, attempts: send(Events(lines, lost, attempts)), ledger, selector)
    async with contextlib.aclosing(orders(channel)) as inbox:
        async for order, number, fds in inbox:
            answer = await _obey(resolver, order, fds)
            for _ in range(ANSWER_TRIES):  # events may have filled the channel; an answer has to get through
                if send(answer, number):
                    break
                await asyncio.sleep(0.01)
            if isinstance(order, Stop):
                return
    await resolver.stop()


async def _obey(resolver: Resolver, order: Any, fds: list[int]) -> Done | Failed | Counted:
    """Carry out one order; its answer."""
    try:
        match order:
            case Start():
                await _start(resolver, order, fds)
            case Adopt():
                resolver.adopt(_image(fds[0]), order.judgement, order.settings)
            case Meet():
                channel, marks = fds
                resolver.meet(Channel(socket.socket(fileno=channel), TO_RESOLVER), marks)
                os.close(marks)
            case Stats():
                return resolver.stats()
            case Stop():
                await resolver.stop()
    except Exception as error:  # the supervisor decides what follows; the old judgement stays in force
        return Failed(f"{type(error).__name__}: {error}")
    return Done()


async def _start(resolver: Resolver, order: Start, fds: list[int]) -> None:
    resolver.adopt(_image(fds[0]), order.judgement, order.settings)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(max(soft, 8192), hard), hard))
    if not order.inside:
        resource.setrlimit(resource.RLIMIT_FSIZE, (MAX_FILE, MAX_FILE))
    sockets = [(kind, socket.socket(fileno=fd)) for kind, fd in zip(order.sockets, fds[1:], strict=True)]
    if order.user:
        privileges.become(*order.user)
    elif not order.inside:  # inside the supervisor it holds what the supervisor holds
        privileges.keep(())
    await resolver.listen([sock for kind, sock in sockets if kind == "udp"], [sock for kind, sock in sockets if kind == "tcp"])


def main() -> None:
    gc.freeze()
    gc.set_threshold(*RUBBISH)
    channel = Channel(socket.socket(fileno=int(sys.argv[1])), ORDERS)
    selector = Selector()
    with asyncio.Runner(loop_factory=lambda: asyncio.SelectorEventLoop(selector)) as runner:
        runner.run(serve(channel, Ledger(int(sys.argv[2])), selector))


if __name__ == "__main__":
    main()
