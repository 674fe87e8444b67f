"""A client that never stops: it asks and sends at a bounded rate while something is broken on purpose, and remembers all of it.

It lives in a rig's client namespace. Names that are listed are asked for in random case, others again and again (cached) and
once each (fresh). A question is repeated after a second, as a stub resolver does it, and given up after PATIENCE. Beside the
questions go packets: to a listed address, which nobody may ever echo, and to another one, which shows that an echo would come.
"""

import contextlib
import itertools
import os
import random
import select
import socket
import threading
import time
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import dns.edns
import dns.message
import dns.rcode

from embargo import events
from embargo.daemon.resolve import forward
from support.agent import Agent
from support.playbook import query
from tools.rig import LAN4, WEB4, WEB6, Rig, until

LISTED4, LISTED6 = "203.0.113.200", "2001:db8:99::7"
NAME = "alipay.example"
APPS = {
    "alipay": {"payment": [f"{NAME}  # evidence", f"{LISTED4}/29", "2001:db8:99::/48"], "telemetry": ["log.test"]},
}
RATE = 300.0  # questions a second, and
PROBES = 50.0  # packets a second: half a processor has to be left for who answers
MOST = 60_000  # questions of one load
AGAIN, PATIENCE = 1.0, 10.0  # seconds until a question is repeated and given up; the C library's resolver asks for ten too
AFTER = 0.7  # seconds that it goes on when all is mended
SOCKETS = 12  # whose ports lead to this or that worker


_loads = itertools.count()


@dataclass(slots=True, eq=False)
class Question:
    name: str
    wire: bytes
    asked: float
    tries: int = 1
    replies: list[tuple[float, bytes]] = field(default_factory=list)  # seconds after it was asked, and what came

    @property
    def listed(self) -> bool:
        return self.name.lower().endswith(NAME)


class Load:
    """`with Load(rig) as load:` break something; afterwards `load.holds()` says whether it was noticed."""

    def __init__(self, rig: Rig, server: str = f"{LAN4}.1", *, rate: float = RATE, probes: bool = True, seed: int = 7) -> None:
        self._rig = rig
        self.server = server
        self._rate = rate
        self._probing = probes
        self._random = random.Random(seed)
        self._zone = f"load{next(_loads)}"  # names that no load before has put into a cache
        self.questions: list[Question] = []
        self.wrong: list[str] = []  # what came and answers nothing that was asked
        self.echoes: Counter[str] = Counter()
        self.probes: Counter[str] = Counter()
        self._stop = threading.Event()
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._within, name="load")

    def __enter__(self) -> "Load":
        self._thread.start()
        until(lambda: any(each.replies for each in list(self.questions)) or self._failure, "the first answer")
        return self

    def __exit__(self, *_: object) -> None:
        time.sleep(AFTER)
        self._stop.set()
        self._thread.join()
        if self._failure is not None:
            raise self._failure

    def goes_on(self, count: int = 50) -> None:
        """Wait until so many questions asked from now on have been answered."""
        first = len(self.questions)
        until(lambda: sum(1 for each in self.questions[first:] if each.replies) >= count, "answers go on")

    # ── asking ───────────────────────────────────────────────────────────────────────────────────────────────────────

    def _within(self) -> None:
        try:
            self._rig.within("client", self._run)
        except BaseException as error:
            self._failure = error

    def _run(self) -> None:
        with contextlib.ExitStack() as stack:
            socks = [stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) for _ in range(SOCKETS)]
            for sock in socks:
                sock.setblocking(False)
                sock.connect((self.server, 53))
            self._ask_and_hear(socks, stack)

    def _ask_and_hear(self, socks: Sequence[socket.socket], stack: contextlib.ExitStack) -> None:
        waiting: deque[tuple[socket.socket, Question]] = deque()  # in the order of their next try
        by_wire: dict[tuple[int, bytes], Question] = {}
        probing = Prober(stack) if self._probing else None
        turn = probe_at = time.monotonic()
        end = 0.0
        for names in self._names():
            now = time.monotonic()
            while turn > now and not end:
                self._hear(socks, by_wire, min(turn - now, 0.01))
                now = time.monotonic()
            turn = max(turn + 1 / self._rate, now - 0.2)  # what was missed by more is not caught up with
            if not end and (self._stop.is_set() or len(self.questions) >= MOST):
                end = now + PATIENCE
            if end:
                self._hear(socks, by_wire, 0.02)
                if now > end or all(question.replies for _, question in waiting):
                    break
            else:
                sock = socks[len(self.questions) % SOCKETS]
                question = Question(names, query(names, ident=len(self.questions) & 0xFFFF), now)
                self.questions.append(question)
                by_wire[sock.fileno(), question.wire[:2]] = question
                waiting.append((sock, question))
                _send(sock, question.wire)
            while waiting and waiting[0][1].asked + AGAIN * waiting[0][1].tries <= now:
                sock, question = waiting.popleft()
                if not question.replies and question.tries < PATIENCE / AGAIN:
                    question.tries += 1
                    _send(sock, question.wire)
                    waiting.append((sock, question))
            if probing is not None and not end and now >= probe_at:
                probe_at = now + 1 / PROBES
                probing.probe(now, self.probes, self.echoes)
        if probing is not None:
            probing.hear(self.echoes)

    def _names(self) -> Iterator[str]:
        for number in itertools.count():
            match number % 4:
                case 0 | 1:
                    name = f"n{self._random.randrange(40)}.{NAME}"
                    yield "".join(self._random.choice((c.upper(), c)) for c in name)
                case 2:
                    yield f"cached{self._random.randrange(20)}.test"
                case _:
                    yield f"fresh{number}.{self._zone}.test"

    def _hear(self, socks: Sequence[socket.socket], by_wire: dict[tuple[int, bytes], Question], seconds: float) -> None:
        for sock in select.select(socks, [], [], seconds)[0]:
            with contextlib.suppress(OSError):  # a refusal by ICMP is no answer
                while True:
                    data = sock.recv(4096)
                    question = by_wire.get((sock.fileno(), data[:2]))
                    end = 12 + len(question.name) + 6 if question else 0
                    if question is None or data[12:end] != question.wire[12:end]:
                        self.wrong.append(data.hex())
                    else:
                        question.replies.append((time.monotonic() - question.asked, data))

    # ── what must be so ──────────────────────────────────────────────────────────────────────────────────────────────

    def holds(self, *, silent: int = 0, failed: bool = True) -> None:
        """No listed name resolved and no listed address was reached; others were answered, and only the right questions.

        `silent`: so many questions may have had no answer at all; `failed`: SERVFAIL is an answer.
        """
        assert len(self.questions) > 100, "that was no load"
        assert not self.wrong, self.wrong[:3]
        assert not self.leaked(), self.leaked()[:3]
        late = [each for each in self.questions if not each.replies or each.replies[0][0] > PATIENCE]
        assert len(late) <= silent, f"{len(late)} of {len(self.questions)} without an answer: {[q.name for q in late[:5]]}"
        others = Counter(rcode(data) for each in self.questions if not each.listed for _, data in each.replies)
        assert set(others) <= ({"NOERROR", "SERVFAIL"} if failed else {"NOERROR"}), others
        assert others["NOERROR"], "nothing was ever resolved"
        if self._probing:
            assert self.probes[LISTED4] > 5
            assert not self.echoes[LISTED4] + self.echoes[LISTED6], self.echoes
            assert self.echoes[WEB4], f"the way to the internet is open: {self.echoes} of {self.probes}"

    def leaked(self) -> list[str]:
        """Replies for listed names that are neither a block with its reason nor SERVFAIL."""
        return [
            f"{each.name}: {rcode(data)} after {seconds:.2f} s"
            for each in self.questions
            if each.listed
            for seconds, data in each.replies
            if not (rcode(data) == "SERVFAIL" or blocked(data))
        ]

    @property
    def blocks(self) -> int:
        """How many times a block was answered."""
        return sum(1 for each in self.questions if each.listed for _, data in each.replies if data[3] & 15 == 3)


def _send(sock: socket.socket, data: bytes) -> None:
    with contextlib.suppress(OSError):  # refused, or no route just now: nobody hears it, and it is asked again
        sock.send(data)


class Prober:
    """Packets to addresses from a new port each, since a flow that was let through once is another thing."""

    TARGETS = (LISTED4, LISTED6, WEB4, WEB6)
    HELD = 60  # sockets that may still hear an echo

    def __init__(self, stack: contextlib.ExitStack) -> None:
        self._open: deque[tuple[socket.socket, str]] = deque()
        self._next = itertools.cycle(self.TARGETS)
        stack.callback(self._close)

    def probe(self, now: float, sent: Counter[str], echoes: Counter[str]) -> None:
        target = next(self._next)
        sock = socket.socket(socket.AF_INET6 if ":" in target else socket.AF_INET, socket.SOCK_DGRAM)
        sock.setblocking(False)
        with contextlib.suppress(OSError):
            sock.connect((target, 8080))
            sock.send(b"probe")
        sent[target] += 1
        self._open.append((sock, target))
        if len(self._open) > self.HELD:
            self.hear(echoes)
            while len(self._open) > self.HELD // 2:
                self._open.popleft()[0].close()

    def hear(self, echoes: Counter[str]) -> None:
        for sock, target in self._open:
            with contextlib.suppress(OSError):
                echoes[target] += sock.recv(64) == b"probe"

    def _close(self) -> None:
        for sock, _ in self._open:
            sock.close()


def rcode(data: bytes) -> str:
    return dns.rcode.to_text(dns.rcode.Rcode(data[3] & 15))


def blocked(data: bytes) -> bool:
    """NXDOMAIN, nothing in it, EDE 15."""
    reply = dns.message.from_wire(data)
    codes = [option.code for option in reply.options if isinstance(option, dns.edns.EDEOption)]
    return reply.rcode() == 3 and not reply.answer and codes == [15]


def all_accounted(agent: Agent, load: "Load") -> None:
    """Every block that a client saw is logged, or counted as lost. Records that stand for several names come after a window."""
    until(lambda: load.blocks <= accounted(agent), "every block is accounted for", 3 * events.WINDOW)


def accounted(agent: Agent) -> int:
    """Attempts for listed names that the log tells of, with those that it counts as lost. Rotated files too.

    Records that stand for several names (`others`) have no name.
    """
    named = sum(int(event["count"]) for event in agent.events("dns") if event.get("qname", NAME).lower().endswith(NAME))
    return named + sum(int(event.get("lost", 0)) for event in agent.events())


# ── what the agent's processes take ──────────────────────────────────────────────────────────────────────────────────────


class Use(NamedTuple):
    rss: int  # octets
    fds: int


def uses(agent: Agent) -> dict[int, tuple[str, Use]]:
    """What each process of the agent is and takes at this moment, by pid."""
    assert agent.process is not None
    found = {}
    for pid in (supervisor(agent), *agent.children()):
        with contextlib.suppress(OSError):  # it has just ended
            rss = int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
            found[pid] = role(pid), Use(rss, len(os.listdir(f"/proc/{pid}/fd")))
    return found


def supervisor(agent: Agent) -> int:
    assert agent.process is not None
    return agent.process.pid  # `ip netns exec` becomes what it runs


def role(pid: int) -> str:
    """supervisor, resolver, guardian or compiler."""
    words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    module = next((word.decode() for word in words if word.startswith(b"embargo.daemon.")), "supervisor")
    return module.rpartition(".")[2]


def pids(agent: Agent, wanted: str) -> list[int]:
    return [pid for pid, (kind, _) in uses(agent).items() if kind == wanted]


def bounded(
    before: dict[int, tuple[str, Use]], after: dict[int, tuple[str, Use]], *, rss: int = 24 << 20, fds: int = 4
) -> None:
    """Each kind of process takes about what it took before: per process, the largest of each kind."""

    def most(found: dict[int, tuple[str, Use]], kind: str, which: int) -> int:
        return max((int(use[which]) for each, use in found.values() if each == kind), default=0)

    for kind in {kind for kind, _ in after.values()} - {"compiler"}:
        for which, allowed, what in ((0, rss, "octets"), (1, fds, "descriptors")):
            was, is_ = most(before, kind, which), most(after, kind, which)
            if (kind, what) == ("resolver", "descriptors"):
                allowed += forward.SOCKETS  # a pool that fills with use
            assert is_ <= was + allowed, f"{kind}: {is_} {what}, {was} before"
