"""Probes of names: every listed name, asked in every way that a client could ask.

A name is held if the response says that the very entry blocks it, and no query of it reaches the sink. The control is a name
that is not listed; a resolver that does not answer it proves nothing.
"""

import ipaddress
from collections.abc import Sequence
from typing import Any

from embargo import explain, names
from embargo.dns import message
from embargo.lists.policy import BYPASS, Class, Decision
from embargo.verify import query
from embargo.verify.packets import Probe, ProbeResult
from embargo.verify.query import Querier, Resolver, Response
from embargo.verify.results import HELD, LEAK, UNPROVEN, ResultRow
from embargo.verify.session import Session
from embargo.verify.targets import Target

QTYPES = (message.A, message.AAAA, message.HTTPS, message.QTYPES["TXT"])
CONTROL_NAME = names.from_text("localhost")  # answered by the agent itself (RFC 6761): the control leaves the machine no more
DDR = ("_dns.resolver.arpa", "resolver.arpa")  # RFC 9462
NO_RESOLVER = "no resolver of this gateway can be queried"
NOT_INTERCEPTED = "port 53 is not intercepted (firewall.lan, firewall.intercept_dns)"


class NameProbes:
    def __init__(self, session: Session) -> None:
        self._session = session
        self._results = session.results

    def run(self, resolvers: Sequence[Resolver]) -> None:
        """Send all probes of names to these resolvers, and count their results."""
        queriers = [Querier(resolver, self._socket_maker(resolver)) for resolver in resolvers]
        try:
            working = self._controls(queriers)
            self._designated([each for each in queriers if each in working and not each.resolver.foreign])
            for class_, listed in sorted(self._session.targets.names.items()):
                row = self._results.row(*class_, "names", skipped=NO_RESOLVER)
                for target in listed:
                    for querier in queriers:
                        self._try(row, class_, target, querier, works=querier in working)
        finally:
            for querier in queriers:
                querier.close()

    def _socket_maker(self, resolver: Resolver) -> Any:
        if ipaddress.ip_address(resolver.address).is_loopback:  # reachable from this namespace only
            return lambda make: make()
        return lambda make: self._session.sandbox.inside("client", make)

    def _controls(self, queriers: Sequence[Querier]) -> list[Querier]:
        """Query a name that is not listed. Returns the queriers that get an answer; from a foreign resolver's address, such an
        answer also proves that the gateway has intercepted the query."""
        working = []
        for foreign, row in (
            (False, self._results.row("control", "-", "a name that is not listed", skipped=NO_RESOLVER)),
            (True, self._results.row(BYPASS, "resolver", "port 53 to other resolvers", skipped=NOT_INTERCEPTED)),
        ):
            for querier in (each for each in queriers if each.resolver.foreign == foreign):
                watched = self._watch(querier.resolver)
                response = querier.query(CONTROL_NAME, message.A)
                if self._leaked(watched):
                    row.count(LEAK, f"{querier.resolver} reached the sink")
                elif response is not None and response.ede != message.EDE_BLOCKED and response.answers:
                    working.append(querier)
                    row.count(HELD)
                else:
                    row.count(UNPROVEN, f"{querier.resolver} does not answer for localhost, which is not blocked")
        return working

    def _watch(self, resolver: Resolver) -> ProbeResult:
        """Look at the sink for queries to a foreign resolver."""
        watched = ProbeResult(Probe(resolver.transport, resolver.address, resolver.port))
        if resolver.foreign:
            self._session.prober.expect(watched)
        return watched

    def _leaked(self, watched: ProbeResult) -> bool:
        self._session.prober.look()
        return watched.arrived

    def _designated(self, queriers: Sequence[Querier]) -> None:
        """Discovery of Designated Resolvers must find none (RFC 9462)."""
        row = self._results.row(BYPASS, "ddr", "discovery of encrypted resolvers", skipped=NO_RESOLVER)
        for querier in queriers:
            for text in DDR:
                for qtype in (message.SVCB, message.A):
                    response = querier.query(names.from_text(text), qtype)
                    if response is None:
                        row.count(UNPROVEN, f"{querier.resolver}: no answer")
                    else:
                        empty = response.rcode == message.NOERROR and not response.answers
                        row.count(HELD if empty else LEAK, _description(text, qtype, querier.resolver, response))

    def _try(self, row: ResultRow, class_: Class, target: Target, querier: Querier, *, works: bool) -> None:
        session, resolver = self._session, querier.resolver
        questions: list[tuple[bytes, int]] = [(target.name, qtype) for qtype in QTYPES]
        questions.append((query.mixed_case(target.name, session.chance.getrandbits(8) | 1), message.A))
        text = names.to_text(target.name)
        for name, qtype in questions:
            if explain.verdict(session.image, session.board, text, message.type_name(qtype)).verdict != "blocked":
                continue  # a special name, which is answered before any list is consulted
            if not works:
                row.count(UNPROVEN, f"{resolver} does not answer the control")
                continue
            watched = self._watch(resolver)
            response = querier.query(name, qtype)
            if self._leaked(watched):
                row.count(LEAK, f"{text} {message.type_name(qtype)} by {resolver} reached the sink")
            elif response is None:
                row.count(UNPROVEN, f"{text} by {resolver}: no answer")
            else:
                description = _description(text, qtype, resolver, response)
                self._judge(row, class_, target.decision, response, description)

    def _judge(self, row: ResultRow, class_: Class, decision: Decision, response: Response, description: str) -> None:
        source = self._session.image.sources[decision.source]
        expected = f"app={class_.app} function={class_.function} list={source.path}:{decision.line}"
        if response.ede != message.EDE_BLOCKED or not set(response.answers) <= self._placeholders():
            row.count(LEAK, description)
        elif not response.text.startswith(expected):
            row.count(UNPROVEN, f"{description}: blocked by another entry: {response.text}")
        else:
            row.count(HELD)

    def _placeholders(self) -> set[str]:
        """The answers that dns.block_mode gives in place of the real ones."""
        mode = self._session.settings.dns.block_mode
        addresses = ("0.0.0.0", "::") if mode == "null" else mode if isinstance(mode, tuple) else ()
        return {f"{'AAAA' if ':' in address else 'A'} {address}" for address in addresses}


def _description(text: str, qtype: int, resolver: Resolver, response: Response) -> str:
    found = ", ".join(response.answers[:3]) or f"rcode {response.rcode} without an answer"
    return f"{text} {message.type_name(qtype)} by {resolver}: {found}"
