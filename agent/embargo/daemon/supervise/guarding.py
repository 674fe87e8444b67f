"""The supervisor's side of the guardian: starts it, restarts it, gives it each generation, and connects it to the resolvers.

The kernel binds the ownership of the nftables table to a netlink socket. The supervisor holds that socket and stores it with
systemd, so that the table keeps its owner while the guardian, or the agent, restarts.
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

NETLINK_NAME = "nftables"  # of the netlink socket in systemd's fd store
LEARNT_FILE = "learnt.jsonl"  # in [state] dir: learnt addresses that survive a restart
APPLY_SECONDS = 60.0  # for the firewall to take a generation
STATS_SECONDS = 2.0  # for an answer to `status`
INTACT_SECONDS = 10.0  # for a check of the kernel's rules: the guardian may be busy with a large change


class Guarding:
    """`changing`: the lock of reloads; a restarted guardian waits for it, so that it gets one consistent generation."""

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
        self.child = Child("guardian", "guardian", orders.ORDERS, on_events, ledgers, tells=orders.TELLS)
        self._keeper = Keeper(
            self.child, self._begin_again,
            lambda status: journal.event({"event": "firewall", "what": "guardian restarted", "status": status}),
        )  # fmt: skip

    @property
    def restarts(self) -> int:
        """How many times the guardian was restarted after an unexpected end."""
        return self._keeper.restarts

    async def start(self) -> None:
        """Start the guardian, before the first `apply`. FirewallError without CAP_NET_ADMIN; ChildError if it fails."""
        if privileges.CAP_NET_ADMIN not in privileges.permitted():
            raise FirewallError("firewall", NEEDS)
        if self._netlink is None:
            with privileges.raised(privileges.CAP_NET_ADMIN):
                self._netlink = nftables.opened()
            notify.store(NETLINK_NAME, [self._netlink.fileno()])
        await self._keeper.start()

    async def _begin(self) -> None:
        assert self._netlink is not None
        await self.child.start()
        await self.child.ask(Use(), [self._netlink.fileno()])

    async def _begin_again(self) -> None:
        """Restart the guardian with the state of the previous one. It adopts the rules, which have stayed in the kernel."""
        await self._begin()
        if self._in_force.generation is None:
            return  # during the first start, which holds `changing` and calls `apply` itself
        async with self._changing:
            await self.apply(self._in_force.generation, self._in_force.around)
        for resolver in self._workers.children:
            await self.introduce(resolver)

    async def apply(self, generation: Generation, around: Surroundings) -> None:
        """Put the firewall rules of a generation into effect. ChildError if the kernel refuses them."""
        settings, firewall = generation.settings, generation.settings.firewall
        unrestricted, partly = _exempt(generation)
        await self.child.ask(
            Apply(
                generation=generation.number, board=generation.board, lan=firewall.lan,
                clients=tuple(interface.network for interface in around.interfaces if interface.name in firewall.lan),
                excepted=(*firewall.except_, *unrestricted), exempt=partly,
                protected=tuple(network for network, _ in surroundings.protected(settings, around)),
                own=surroundings.own_questions(settings, around, self._workers.uid),
                system=tuple(server.address for server in around.system),
                clients_by_address=_clients(generation.report.hosts),
                intercept_port=endpoints.intercept_port(settings), fail=firewall.fail, log_group=firewall.log_group,
                ct_mark=firewall.ct_mark, protect=firewall.protect, learn=firewall.learn,
                memory=f"{settings.state.dir}/{LEARNT_FILE}",
            ),
            [generation.fd],
            APPLY_SECONDS,
        )  # fmt: skip

    async def introduce(self, resolver: Child) -> None:
        """Connect a resolver to the guardian. If that fails, addresses are not learnt from this resolver; all else works."""
        if not self.child.running or not resolver.running:
            return  # when the other one has started, it calls this again
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with ours, theirs:
            try:
                await self.child.ask(orders.Meet(), [ours.fileno(), self._marks])
                await resolver.ask(Meet(), [theirs.fileno(), self._marks_to_read])
            except ChildError as error:
                log.error("addresses are not learnt from %s: %s", resolver.name, error)

    # ── questions ────────────────────────────────────────────────────────────────────────────────────────────────────

    async def stats(self) -> Guarded | None:
        """The state and counters of the firewall; None if the guardian does not answer."""
        if not self.child.running:
            return None
        try:
            stats = await self.child.ask(orders.Stats(), seconds=STATS_SECONDS)
        except ChildError:
            return None
        hits = {("hits", name): count for name, count in stats.hits.items()}
        self.child.counts.update(hits | {("firewall", "restored"): stats.restored, ("firewall", "cut"): stats.cut})
        return stats

    async def about(self, address: bytes) -> AboutAddress:
        """What the guardian knows about an address, of 4 or 16 octets, apart from the lists. ChildError."""
        return await self.child.ask(About(address))

    async def intact(self) -> bool:
        """Whether the rules in the kernel are those that were applied. ChildError."""
        return (await self.child.ask(Intact(), seconds=INTACT_SECONDS)).intact

    def alive(self) -> None:
        """Report that resolvers answer, so that port 53 stays redirected for the next few seconds (`fail = "open"`)."""
        self.child.tell(Alive())

    # ── the end ──────────────────────────────────────────────────────────────────────────────────────────────────────

    def release(self) -> None:
        """Do not restart the guardian any more: the agent stops."""
        self._keeper.release()

    async def stop(self, rules: Rules) -> None:
        """Stop the guardian, for good. It removes the rules if `rules` says so; if it has crashed, another one does."""
        self._keeper.release()
        try:
            for _ in range(2):  # once more if it dies before it has done so
                if not self.child.running and rules != "keep" and not self._rules_gone and self._netlink is not None:
                    await self._begin()
                self._rules_gone = await self._keeper.stop(orders.Stop(rules)) or self._rules_gone
        except (ChildError, OSError) as error:
            log.critical(
                "the firewall rules could not be removed: %s; remove them with: nft delete table inet %s", error, TABLE
            )


def _exempt(generation: Generation) -> tuple[list[str], tuple[tuple[str, tuple[Class, ...]], ...]]:
    """(networks of clients for which nothing is blocked, networks of others with the classes that are not blocked for them)."""
    unrestricted, partly = [], []
    for exempt in generation.exempt:
        if any(exempt.board.actions):
            partly.append((exempt.network, tuple(pauses.passed(exempt, generation.board, generation.image.classes))))
        else:
            unrestricted.append(exempt.network)
    return unrestricted, tuple(partly)


def _clients(hosts: dict[str, tuple[str, ...]]) -> dict[str, str]:
    """address → name of the client, from local records; if there are several names, the first."""
    return {address: name for name, addresses in reversed(hosts.items()) for address in addresses}
