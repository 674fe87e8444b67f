"""The guardian, seen from the supervisor: started, kept alive, given each generation, and introduced to the resolvers.

The netlink socket by which the kernel knows the table's owner is the supervisor's, and stands in systemd's store: it outlives
every guardian, so the table has its owner while none runs.
"""

import asyncio
import logging
import socket

from embargo.daemon.guard import orders
from embargo.daemon.guard.orders import About, Alive, Apply, Guarded, Intact, Rules, Use
from embargo.daemon.host import endpoints, nftables
from embargo.daemon.host.nftables import NEEDS
from embargo.daemon.log.journal import Journal
from embargo.daemon.process import notify, privileges
from embargo.daemon.process.answered import Marks
from embargo.daemon.process.child import Child, ChildError, OnEvents
from embargo.daemon.resolve.orders import Meet
from embargo.daemon.supervise import surroundings
from embargo.daemon.supervise.generations import Generation
from embargo.daemon.supervise.inforce import InForce
from embargo.daemon.supervise.keeper import Keeper
from embargo.daemon.supervise.surroundings import Surroundings
from embargo.daemon.supervise.workers import Workers
from embargo.errors import FirewallError
from embargo.firewall.table import TABLE
from embargo.lists import pauses
from embargo.lists.policy import Class
from embargo.report import AboutAddress

log = logging.getLogger(__name__)

NETLINK = "nftables"  # the name of the netlink socket in systemd's store
LEARNT = "learnt.jsonl"  # in [state] dir: the guardian's memory of addresses
APPLY = 60.0  # seconds for the firewall to take a generation
STATS = 2.0  # seconds for an answer to `status`
RULES = 10.0  # seconds for the guardian to look at the kernel's rules: it may be busy with a large change


class Guarding:
    """`changing`: held while a generation is put in force, so that a guardian that starts anew gets a whole one."""

    def __init__(
        self, in_force: InForce, workers: Workers, journal: Journal, changing: asyncio.Lock, on_events: OnEvents, ledgers: str,
        netlink_socket: socket.socket | None,
    ) -> None:  # fmt: skip
        self._in_force = in_force
        self._workers = workers
        self._changing = changing
        self._netlink = netlink_socket
        self._marks = Marks.make()
        self._marks_to_read = Marks.for_reading(self._marks)
        self._rules_gone = False
        self.child = Child("guardian", "guardian", orders.ORDERS, on_events, ledgers)
        self._keeper = Keeper(
            self.child, self._begin_again,
            lambda status: journal.event({"event": "firewall", "what": "guardian restarted", "status": status}),
        )  # fmt: skip

    @property
    def restarts(self) -> int:
        return self._keeper.restarts

    async def start(self) -> None:
        """Start the guardian; the first generation comes by `apply`. FirewallError without CAP_NET_ADMIN, ChildError."""
        if privileges.CAP_NET_ADMIN not in privileges.permitted():
            raise FirewallError("firewall", NEEDS)
        if self._netlink is None:
            with privileges.raised(privileges.CAP_NET_ADMIN):
                self._netlink = nftables.opened()
            notify.store(NETLINK, [self._netlink.fileno()])
        await self._keeper.start()

    async def _begin(self) -> None:
        assert self._netlink is not None
        await self.child.start()
        await self.child.ask(Use(), [self._netlink.fileno()])

    async def _begin_again(self) -> None:
        """Start it, and give it all that the one before had. The rules stayed in the kernel and are taken over."""
        await self._begin()
        if self._in_force.generation is None:
            return  # the start itself, which holds `changing`
        async with self._changing:
            await self.apply(self._in_force.generation, self._in_force.around)
        for resolver in self._workers.children:
            await self.introduce(resolver)

    async def apply(self, generation: Generation, around: Surroundings) -> None:
        """Put the firewall's part of a generation in force. ChildError when the kernel refuses it."""
        settings, firewall = generation.settings, generation.settings.firewall
        everything, some = _exempt(generation)
        await self.child.ask(
            Apply(
                generation=generation.number, board=generation.board, lan=firewall.lan,
                clients=tuple(each.network for each in around.interfaces if each.name in firewall.lan),
                excepted=(*firewall.except_, *everything), exempt=some,
                protected=tuple(network for network, _ in surroundings.protected(settings, around)),
                own=surroundings.own_questions(settings, around, self._workers.uid),
                system=tuple(each.address for each in around.system),
                clients_by_address=_clients(generation.report.hosts),
                intercept_port=endpoints.intercept_port(settings), fail=firewall.fail, log_group=firewall.log_group,
                ct_mark=firewall.ct_mark, protect=firewall.protect, learn=firewall.learn,
                memory=f"{settings.state.dir}/{LEARNT}",
            ),
            [generation.fd],
            APPLY,
        )  # fmt: skip

    async def introduce(self, resolver: Child) -> None:
        """Connect a resolver and the guardian. Without that nothing is learnt, and nothing else fails."""
        if not self.child.running or not resolver.running:
            return  # the one that starts later is introduced then
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with ours, theirs:
            try:
                await self.child.ask(orders.Meet(), [ours.fileno(), self._marks])
                await resolver.ask(Meet(), [theirs.fileno(), self._marks_to_read])
            except ChildError as error:
                log.error("%s", error)

    # ── questions ────────────────────────────────────────────────────────────────────────────────────────────────────

    async def stats(self) -> Guarded | None:
        """What is in force and was counted; None when the guardian does not answer."""
        if not self.child.running:
            return None
        try:
            stats = await self.child.ask(orders.Stats(), seconds=STATS)
        except ChildError:
            return None
        hits = {("hits", name): count for name, count in stats.hits.items()}
        self.child.counts.update(hits | {("firewall", "restored"): stats.restored, ("firewall", "cut"): stats.cut})
        return stats

    async def about(self, address: bytes) -> AboutAddress:
        """What is known of an address beside the lists. ChildError."""
        return await self.child.ask(About(address))

    async def intact(self) -> bool:
        """Whether the kernel shows our rules. ChildError."""
        return (await self.child.ask(Intact(), seconds=RULES)).intact

    def alive(self) -> None:
        """Resolvers answer: port 53 may be redirected for the next seconds."""
        self.child.tell(Alive())

    # ── the end ──────────────────────────────────────────────────────────────────────────────────────────────────────

    async def stop(self, rules: Rules) -> None:
        """End the guardian. Rules that are to go are removed also when it has just crashed."""
        self._keeper.release()
        try:
            for _ in range(2):  # one that dies while it is asked has done nothing
                if not self.child.running and rules != "keep" and not self._rules_gone and self._netlink is not None:
                    await self._begin()
                self._rules_gone = await self._keeper.stop(orders.Stop(rules)) or self._rules_gone
        except (ChildError, OSError) as error:
            log.critical("the rules stay in the kernel: %s; nft delete table inet %s removes them", error, TABLE)


def _exempt(generation: Generation) -> tuple[list[str], tuple[tuple[str, tuple[Class, ...]], ...]]:
    """(clients for whom nothing acts, clients for whom these classes do not)."""
    everything, some = [], []
    for each in generation.exempt:
        if any(each.board.actions):
            some.append((each.network, tuple(pauses.passed(each, generation.board, generation.image.classes))))
        else:
            everything.append(each.network)
    return everything, tuple(some)


def _clients(hosts: dict[str, tuple[str, ...]]) -> dict[str, str]:
    """Names of clients by address, from local records; of several the first."""
    return {address: name for name, addresses in reversed(hosts.items()) for address in addresses}
