"""Open flows: judged again when something becomes blocked, and deleted where they lead to what is blocked.

A flow that the rules let through carries the number of that judgement in its connection mark, and its next packets are
accepted by the mark alone. So a new judgement gets another number, and the flows meet all rules once more. The mark has few
bits and numbers go round: before a value is used again it is cleared from all flows, since an old flow with that value would
skip the rules.
"""

import asyncio
import contextlib
import dataclasses
import ipaddress
from collections.abc import Callable, Coroutine, Iterable
from typing import Any

from embargo.daemon.guard import conntrack
from embargo.daemon.guard.conntrack import Conntrack, Flow
from embargo.daemon.guard.enforced import Enforced
from embargo.errors import FirewallError
from embargo.firewall import change, ruleset
from embargo.firewall.table import TABLE

JUDGE_DELAY = 0.1  # seconds after an address was learnt until open flows are judged again: one new number for many addresses
CUT_DELAY = 5.0  # seconds after that until their connections are deleted: they are refused already, this frees room

IPNetwork = ipaddress.IPv4Network | ipaddress.IPv6Network


class Flows:
    """`learnt` yields the addresses that are blocked because of a name; `spawn` runs a task; `trouble` reports a failure."""

    def __init__(
        self,
        enforced: Enforced,
        learnt: Callable[[], Iterable[bytes]],
        spawn: Callable[[Coroutine[Any, Any, None]], None],
        trouble: Callable[[str], None],
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._enforced = enforced
        self._learnt = learnt
        self._spawn = spawn
        self._trouble = trouble
        self._clear: set[int] = set()  # mark values that no flow carries
        self._judging: asyncio.TimerHandle | None = None
        self._cutting: asyncio.TimerHandle | None = None
        self.clients: tuple[IPNetwork, ...] = ()  # networks of filtered clients; none: everybody is filtered
        self.cut = 0  # connections that the kernel was told to forget

    def judge_soon(self) -> None:
        """Something more is blocked: judge open flows again in a moment, together with what is blocked until then."""
        if self._judging is None:
            self._judging = self._loop.call_later(JUDGE_DELAY, lambda: self._spawn(self._judge_again()))

    async def _judge_again(self) -> None:
        """Put another judgement in force: open flows meet all rules once more."""
        self._judging = None
        async with self._enforced.changing:
            old = self._enforced.spec
            if old is not None and old.ct_mark:
                new = dataclasses.replace(old, judgement=old.judgement + 1)
                value = await self.free_value_of(new)
                self._enforced.kernel.transact([*change.judge_again(TABLE, old, new)])
                self.in_use(value)
                self._enforced.spec = new
                self._enforced.look()
        if self._cutting is None:
            self._cutting = self._loop.call_later(CUT_DELAY, lambda: self._spawn(self._cut_learnt()))
        await self.prepare_next()

    async def prepare_next(self) -> None:
        """Clear the mark value of the next judgement now, so that putting it in force need not wait for it."""
        async with self._enforced.changing:  # else the value might be put in force while this clears it
            spec = self._enforced.spec
            if spec is not None:
                await self.free_value_of(dataclasses.replace(spec, judgement=spec.judgement + 1))

    async def free_value_of(self, spec: ruleset.Spec) -> int:
        """Clear the mark value of this judgement from all flows: one that was idle since its last use was never judged.

        The value; 0 where flows are not marked.
        """
        mask = spec.ct_mark
        if not mask:
            return 0
        value = ruleset.value_of(spec.judgement, mask)
        if value not in self._clear:
            try:
                await asyncio.to_thread(_unmark, value, mask)
                self._clear.add(value)
            except FirewallError as error:
                self._trouble(str(error))
        return value

    def in_use(self, value: int) -> None:
        """This value is in force: from now on flows carry it."""
        self._clear.discard(value)

    async def _cut_learnt(self) -> None:
        self._cutting = None
        if learnt := set(self._learnt()):
            await self.delete(learnt.__contains__)

    async def delete(self, is_blocked: Callable[[bytes], bool]) -> None:
        """Let the kernel forget the connections of filtered clients to blocked addresses."""
        if not conntrack.in_use():
            return
        clients, excepted = self.clients, self._excepted()
        kernel = self._enforced.kernel
        passing = {address for name in ("allow4", "allow6") for address in kernel.keys(TABLE, name)}

        def to_delete(flow: Flow) -> bool:
            if not conntrack.blocked(flow, lambda address: address not in passing and is_blocked(address)):
                return False
            ends = [ipaddress.ip_address(end) for end in (flow.source, flow.answers)]
            filtered = not clients or any(end in network for network in clients for end in ends)
            return filtered and not any(end in network for network in excepted for end in ends)

        def delete() -> int:
            with contextlib.closing(Conntrack()) as table:
                return table.delete([flow for flow in table.flows() if to_delete(flow)])

        try:
            self.cut += await asyncio.to_thread(delete)
        except FirewallError as error:
            self._trouble(str(error))

    def _excepted(self) -> list[IPNetwork]:
        """Clients that may keep flows to blocked addresses: excepted from all rules, or from those of a paused app."""
        spec = self._enforced.spec
        if spec is None:
            return []
        return [ipaddress.ip_network(text) for text in (*spec.except_, *(network for network, _ in spec.exempt))]


def _unmark(value: int, mask: int) -> None:
    with contextlib.closing(Conntrack()) as table:
        table.unmark(list(table.flows(value, mask)), mask)
