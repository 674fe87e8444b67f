"""A question of the agent itself about a name: what its answer leads to, judged as a client's would be (`embargo why`)."""

import asyncio

from embargo.daemon.resolve.orders import Judged
from embargo.dns import message
from embargo.dns.judgement import Attempt
from embargo.names import Name

SECONDS = 3.0  # to wait for an answer; a client waits longer, but an administrator can ask again


class Inquiry:
    """In the place of a client's peer: the reply that is sent to it ends the inquiry. Its attempt is not logged."""

    def __init__(self) -> None:
        self._attempt: asyncio.Future[Attempt | None] = asyncio.get_running_loop().create_future()

    def end(self, attempt: Attempt | None) -> None:
        """The reply has come, with the attempt that it would have been."""
        if not self._attempt.done():
            self._attempt.set_result(attempt)

    async def judged(self) -> Judged:
        """What the policy claims of the answer; empty when that is nothing, or no answer comes in time."""
        try:
            attempt = await asyncio.wait_for(self._attempt, SECONDS)
        except TimeoutError:
            attempt = None
        if attempt is None or attempt.decision is None or not attempt.answer:
            return Judged()
        decision = attempt.decision
        generation = attempt.rules.generation
        return Judged(attempt.answer[:1000], attempt.audit, generation, decision.source, decision.line, decision.rule[:1000])


def packet(qname: Name, qtype: int) -> bytes:
    """The query that asks this."""
    return message.ask(message.own_query(qname, qtype), 0)
