"""One worker: sockets around one Engine.

The supervisor starts it with one end of a channel. Everything it may touch comes over that channel: its sockets and the
policy image as descriptors, its settings in an order. After `Start` it has no privilege left, and between generations it
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
from functools import partial
from typing import Any

from embargo import names
from embargo.daemon.process import privileges
from embargo.daemon.process.answered import Marks
from embargo.daemon.process.channel import Channel, Events, Failed, orders
from embargo.daemon.process.outbox import Ledger, Outbox
from embargo.daemon.process.sightings import TO_RESOLVER
from embargo.daemon.resolve import inquiry, intake
from embargo.daemon.resolve import settings as engine_settings
from embargo.daemon.resolve.attempts import Attempts
from embargo.daemon.resolve.clients import Clients
from embargo.daemon.resolve.forward import Forwarder
from embargo.daemon.resolve.inquiry import Inquiry
from embargo.daemon.resolve.orders import (
    ORDERS,
    Adopt,
    Counted,
    Flush,
    Flushed,
    Judge,
    Judged,
    Judgement,
    Meet,
    Settings,
    Start,
    Stats,
    Stop,
)
from embargo.daemon.resolve.selector import Selector
from embargo.daemon.resolve.witness import Witness
from embargo.dns.acl import Acl
from embargo.dns.cache import Cache, CachedAnswer
from embargo.dns.engine import Drop, Engine, Joined, Reply, Settled
from embargo.dns.judgement import Rules
from embargo.dns.questions import Forward
from embargo.dns.screening import Passing
from embargo.lists.image import Image
from embargo.lists.policy import Action, Switchboard
from embargo.names import Name
from embargo.records import Done
from embargo.report import UpstreamStats

GC_THRESHOLDS = 20_000, 20, 50  # containers between collections: a worker makes few cycles and holds many containers
WAITING_CHECK_SECONDS = 0.2  # between two checks for clients that have waited long enough: for an expired answer, for SERVFAIL
REPORT_TURN, REPORT_SECONDS = 0.002, 0.02  # seconds for reporting cached answers at once; seconds between two turns
FIREWALL_SECONDS = 1.0  # that a reply waits for the firewall to let its addresses pass: clients ask again after five
ANSWER_TRIES = 500  # hundredths of a second that an answer waits for the supervisor to read
MAX_FILE = 1 << 20  # octets of a file (ledger, memory of an answer, stderr): a worker taken over must not fill a disk
STOP_SECONDS = 1.0  # for what is on its way when the worker stops, and again for its events

SendEvents = Callable[[bytes, int, int], bool]  # event lines, events lost before them, the attempts that both stand for


class Resolver:
    """Answers queries by one judgement until it is given the next. Sockets, timers and the guardian around an Engine."""

    def __init__(self, send_events: SendEvents, ledger: Ledger | None, selector: Selector | None = None) -> None:
        self._loop = asyncio.get_running_loop()
        # the selector answers queries while the loop waits, so the loop has to be woken
        self._cache = Cache(on_wanted=lambda: self._loop.call_soon_threadsafe(self._refresh))
        self._judged = 0  # judgements so far
        self._engine: Engine | None = None
        self._forwarder = Forwarder(self._completed, self._overdue, self._expired)
        self._attempts = Attempts(Outbox(send_events, ledger))
        self._witness = Witness(self._look_behind, self.release)
        self._attempts.on_asked = self._witness.watch
        self._intake = intake.make(self._cache, self._attempts)
        self.counters: Counter[str] = Counter()
        self._clients = Clients(
            self._intake, selector, lambda client: self.engine.acl.allows(client), self._handle, self.counters
        )
        self._allow_from: tuple[str, ...] = ()
        self._log_names = "blocked"
        self._waiting_timer: asyncio.TimerHandle | None = None
        self._report_timer: asyncio.TimerHandle | None = None
        self._held: dict[int, list[Reply]] = {}  # replies that wait for the guardian, by the number of the request
        self._last_request = 0

    @property
    def engine(self) -> Engine:
        """The engine, which the first `adopt` makes."""
        assert self._engine is not None, "adopt comes first"
        return self._engine

    def adopt(self, image: Image, judgement: Judgement, settings: Settings | None) -> None:
        """Judge by this from the next packet on. Without `settings` those of before stay."""
        if settings is not None:
            mode, zones = engine_settings.block_mode(settings), engine_settings.zones(settings)
            self._allow_from = settings.allow_from
            self._log_names = settings.log_names
            self._witness.learning = settings.learn
            self._forwarder.pipelines.trust_authorities(settings.tls_ca)
            self._forwarder.readdress()  # a change of this machine's addresses comes this way too
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
        self._collect_resolved()
        self._attempts.adopt(rules, names=self._log_names != "none")
        self._intake.adopt(rules)
        self._report_cache()  # its answers may lead to addresses that are blocked from now on

    def connect_guardian(self, channel: Channel, marks: int) -> None:
        """Report to the guardian at the other end; `marks`: the descriptor of the page that it writes."""
        self._witness.connect(channel, Marks(marks))
        self._collect_resolved()
        self._report_cache()  # a guardian knows nothing of answers from before its start

    def _report_cache(self) -> None:
        """Report the cached answers, which clients still use, as if they came now."""
        if self._report_timer is not None:
            self._report_timer.cancel()
            self._report_timer = None
        if self._witness.connected:
            self._report_entries(self._cache.live(self._loop.time()))

    def _report_entries(self, entries: list[CachedAnswer]) -> None:
        """Report cached answers, as many in a turn as there is time for: a large one takes as long as hundreds of others."""
        if not entries or self._engine is None or not self._witness.connected:
            return
        end = self._loop.time() + REPORT_TURN
        while entries and self._loop.time() < end:
            self._engine.note_cached([entries.pop()])
        self._report_resolved([])
        self._report_timer = self._loop.call_later(REPORT_SECONDS, self._report_entries, entries)

    def _collect_resolved(self) -> None:
        """Have the engine collect what is reported, once there is a guardian."""
        if self._engine is not None and self._witness.connected and self._engine.resolved is None:
            self._engine.resolved = []

    def listen(self, udp: list[socket.socket], tcp: list[socket.socket]) -> None:
        """Answer clients at these sockets, which are bound."""
        self._clients.listen(udp, tcp)

    def _handle(self, packet: bytes, client: str, peer: object, udp: bool) -> bool:
        """Answer a query that the fast path has declined; False when it gets no reply."""
        now = self._loop.time()
        outcome = self.engine.handle(packet, client, peer, now, udp=udp)
        self._dispatch(outcome, now)
        return not isinstance(outcome, Drop)

    def _refresh(self) -> None:
        """Ask for what the cache wants to have renewed."""
        now = self._loop.time()
        for forward in self.engine.refresh(now):
            self._dispatch(forward, now)

    def _dispatch(self, outcome: Reply | Forward | Joined | Drop, now: float) -> None:
        match outcome:
            case Reply():
                self._deliver(outcome, now)
            case Forward():
                self.counters["upstream_queries"] += 1
                self._forwarder.start(outcome)
                if self._waiting_timer is None:
                    self._waiting_timer = self._loop.call_later(WAITING_CHECK_SECONDS, self._reply_waiting)
            case Drop(reason):
                self.counters[f"dropped_{reason}"] += 1
            case Joined():
                self.counters["joined"] += 1

    def _reply_waiting(self) -> None:
        """Reply to clients that have waited long enough; again while questions are on their way."""
        self._waiting_timer = None
        now = self._loop.time()
        self._settled(Settled(self.engine.reply_stale(now) + self.engine.give_up(now)), now)
        if self.engine.pending and self._waiting_timer is None:
            self._waiting_timer = self._loop.call_later(WAITING_CHECK_SECONDS, self._reply_waiting)

    def _deliver(self, reply: Reply, now: float) -> None:
        if isinstance(reply.peer, Inquiry):
            reply.peer.end(reply.attempt)
            return
        if reply.passing is not None and self._wait_to_pass(reply, reply.passing):
            return
        reply.peer.send(reply.wire)  # type: ignore[attr-defined] # a UdpPeer or a Connection: what `handle` was given
        if reply.attempt is not None:
            self._attempts.note(((reply.client, reply.attempt),), now, time.time())

    def _wait_to_pass(self, reply: Reply, passing: Passing) -> bool:
        """Hold a reply until its addresses pass the firewall, or the client would come too early. False: do not wait."""
        number = self._last_request = self._last_request + 1
        if not self._witness.request_pass(number, passing):
            return False
        self._hold(number, [reply._replace(passing=None)])
        return True

    def _hold(self, number: int, replies: list[Reply]) -> None:
        self._held[number] = replies
        self._loop.call_later(FIREWALL_SECONDS, self.release, number)

    def flush(self, name: Name) -> int:
        """Forget what upstreams said about a name and all names below it. How many cached answers that were."""
        count = self.engine.flush(name)
        self._intake.adopt(self.engine.rules)  # the replies that it remembers
        return count

    async def judge(self, order: Judge) -> Judged:
        """Resolve a name and judge the answer, as for a query of a client."""
        asking = Inquiry()
        if not self._handle(inquiry.packet(names.from_text(order.name), order.qtype), order.client, asking, udp=False):
            return Judged()
        return await asking.judged()

    def release(self, number: int) -> None:
        """Send held replies: the guardian has carried out the request, or has been waited for long enough."""
        for reply in self._held.pop(number, ()):
            self._deliver(reply, self._loop.time())

    def _look_behind(self, name: Name, qtype: int) -> bool:
        """Ask which addresses are behind a blocked name; False when it is no longer blocked."""
        now, rules = self._loop.time(), self.engine.rules
        if rules.board.choose(rules.image.lookup(name))[0] is Action.PASS:
            return False
        forward = self.engine.look_behind(name, qtype, now)
        if forward is not None:
            self._dispatch(forward, now)
        return True

    def _completed(self, token: int, packet: bytes) -> None:
        now = self._loop.time()
        self._settled(self.engine.complete(token, packet, now), now)

    def _overdue(self, token: int, reason: str) -> None:
        now = self._loop.time()
        self._settled(self.engine.overdue(token, reason, now), now)

    def _expired(self, token: int, reason: str, network: bool) -> None:
        now = self._loop.time()
        self._settled(self.engine.expire(token, reason, now, network=network), now)

    def _settled(self, outcome: Settled | Forward, now: float) -> None:
        if isinstance(outcome, Forward):
            self._dispatch(outcome, now)
            return
        if self.engine.resolved and self._report_resolved(outcome.replies):
            return
        for reply in outcome.replies:
            self._deliver(reply, now)

    def _report_resolved(self, replies: list[Reply]) -> bool:
        """Report answers to the guardian. True: the replies are held, because an address in them may still be blocked."""
        assert self.engine.resolved is not None
        held = False
        for resolved in self.engine.resolved:
            if self._witness.report(resolved, self.engine.rules):
                number = self._last_request = self._last_request + 1
                if self._witness.request_free(number, resolved) and replies:
                    self._hold(number, replies)
                    held = True
        self.engine.resolved.clear()
        return held

    def stats(self) -> Counted:
        """What was counted since the start, and the health of the upstreams."""
        now = self._loop.time()
        upstreams = [self.engine.zones.default, *self.engine.zones.forward.values()]
        counters = {
            "mismatched": self._forwarder.mismatched, "pending": self.engine.pending,
            "looked_up": self._witness.counters["looked_up"], "untold": self._witness.counters["untold"],
            "dropped_tcp_limit": self._clients.streams.turned_away, "tcp_evicted": self._clients.streams.evicted,
            "unsent": self._clients.unsent,
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
                    str(server),
                    health.asked,
                    health.failed,
                    health.healthy,
                    round(health.srtt * 1000, 2),
                    health.last_error,
                    health.plain_until > now,
                )
                for group in upstreams
                for server, health in group.health.items()
            ),
        )

    async def stop(self) -> None:
        """Take no more queries, answer those on their way for at most STOP_SECONDS, and hand over the events."""
        self._clients.stop_listening()
        deadline = self._loop.time() + STOP_SECONDS
        while (
            self._engine is not None and (self.engine.pending or self._held or self._clients) and self._loop.time() < deadline
        ):
            await asyncio.sleep(0.02)
        if self._waiting_timer is not None:
            self._waiting_timer.cancel()
        self._forwarder.close()
        self._clients.close()
        self._witness.stop()
        await self._attempts.stop(STOP_SECONDS)


def _image(fd: int) -> Image:
    """The image behind a descriptor, which is closed. It is not verified: the supervisor has done that."""
    try:
        return Image(memoryview(mmap.mmap(fd, 0, prot=mmap.PROT_READ)), trusted=True)
    finally:
        os.close(fd)


async def serve(channel: Channel, ledger: Ledger | None = None, selector: Selector | None = None) -> None:
    """A resolver's life: orders until Stop, or until the supervisor has ended."""

    def send(record: object, number: int | None = None) -> bool:
        """False: the supervisor does not read at the moment."""
        try:
            channel.send(record, number=number)
        except BlockingIOError:
            return False
        except OSError:
            return True  # the supervisor has ended; the reader sees the end of the channel
        return True

    resolver = Resolver(lambda lines, lost, attempts: send(Events(lost, attempts, lines)), ledger, selector)
    inquiries: set[asyncio.Task[Judged]] = set()
    async with contextlib.aclosing(orders(channel)) as inbox:
        async for order, number, fds in inbox:
            if isinstance(order, Judge):  # later orders do not wait for an upstream
                asking = asyncio.create_task(resolver.judge(order), name=f"inquiry {number}")
                inquiries.add(asking)
                asking.add_done_callback(partial(_answered, send, number, inquiries))
                continue
            answer = await _obey(resolver, order, fds)
            for _ in range(ANSWER_TRIES):  # events may have filled the channel; an answer has to get through
                if send(answer, number):
                    break
                await asyncio.sleep(0.01)
            if isinstance(order, Stop):
                return
    await resolver.stop()


def _answered(
    send: Callable[[object, int | None], bool], number: int | None, inquiries: set[asyncio.Task[Judged]],
    asked: asyncio.Task[Judged],
) -> None:  # fmt: skip
    """An inquiry has ended. If the channel is full, the supervisor does without the answer."""
    inquiries.discard(asked)
    if not asked.cancelled():
        error = asked.exception()
        send(asked.result() if error is None else Failed(f"{type(error).__name__}: {error}"), number)


async def _obey(resolver: Resolver, order: Any, fds: list[int]) -> Done | Failed | Counted | Flushed:
    """Carry out one order; its answer."""
    try:
        match order:
            case Start():
                await _start(resolver, order, fds)
            case Adopt():
                resolver.adopt(_image(fds[0]), order.judgement, order.settings)
            case Meet():
                channel, marks = fds
                resolver.connect_guardian(Channel(socket.socket(fileno=channel), TO_RESOLVER), marks)
                os.close(marks)
            case Stats():
                return resolver.stats()
            case Flush():
                return Flushed(resolver.flush(names.from_text(order.name)))
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
    resolver.listen([sock for kind, sock in sockets if kind == "udp"], [sock for kind, sock in sockets if kind == "tcp"])


def main() -> None:
    """The process of a worker. Arguments: the descriptors of its channel and of its ledger."""
    gc.freeze()
    gc.set_threshold(*GC_THRESHOLDS)
    channel = Channel(socket.socket(fileno=int(sys.argv[1])), ORDERS, takes=True)
    selector = Selector()
    with asyncio.Runner(loop_factory=lambda: asyncio.SelectorEventLoop(selector)) as runner:
        runner.run(serve(channel, Ledger(int(sys.argv[2])), selector))


if __name__ == "__main__":
    main()
