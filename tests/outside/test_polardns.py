"""Every reply that PolarDNS can make, as an upstream of Embargo and of three other resolvers.

What all three others make an answer of must be an answer here. Whatever comes, every query gets a reply that a client can
read, and names of other zones go on being answered.
"""

from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import dns.exception
import dns.flags
import dns.message
import dns.query
import dns.rcode
import pytest

from support import exports, polar
from support.agent import Agent, running
from support.polar import Example

pytestmark = [pytest.mark.all, pytest.mark.root]

SECONDS = 12.0  # for one reply; a resolver that waits for a silent server needs some
AT_ONCE = 12  # queries for each resolver
_NO_POLICY = "$TTL 60\n@ SOA localhost. mail.localhost. 1 3600 600 86400 60\n@ NS localhost.\n"
PEERS: Mapping[str, tuple[Callable[[Path, int, int], list[str]], str]] = {
    "unbound": (exports.unbound, ""),
    "bind": (exports.bind, _NO_POLICY),
    "dnsmasq": (exports.dnsmasq, ""),
}


@pytest.fixture(scope="module")
def ports(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, int]]:
    """The port of each resolver, by name; `embargo` is ours."""
    with ExitStack() as stack:
        upstream = stack.enter_context(polar.serving(tmp_path_factory.mktemp("polar")))
        agent = stack.enter_context(running(tmp_path_factory.mktemp("agent"), dns={"upstream": [f"127.0.0.1:{upstream}"]}))
        _agents.append(agent)
        found = {"embargo": agent.port}
        for name, (command, policy) in PEERS.items():
            found[name] = stack.enter_context(exports.serving(command, tmp_path_factory.mktemp(name), policy, upstream)).port
        yield found


_agents: list[Agent] = []


def reply(port: int, example: Example) -> dns.message.Message | None:
    """The reply to a query, asked again over TCP if it is cut; None for silence. Raises if it cannot be read."""
    query = dns.message.make_query(example.name, example.type, use_edns=0, payload=1232)
    try:
        answer = dns.query.udp(query, "127.0.0.1", SECONDS, port)
        return dns.query.tcp(query, "127.0.0.1", SECONDS, port) if answer.flags & dns.flags.TC else answer
    except (dns.exception.Timeout, EOFError, ConnectionError):
        return None


def judged(port: int, example: Example) -> str:
    """What a client makes of the reply: `answer`, an rcode, `silence`, or `unreadable`."""
    try:
        answer = reply(port, example)
    except (dns.exception.DNSException, ValueError, OSError) as error:
        return f"unreadable: {type(error).__name__}"
    if answer is None:
        return "silence"
    return "answer" if answer.rcode() == 0 and answer.answer else dns.rcode.to_text(answer.rcode())


def test_what_others_take_is_taken_and_every_query_gets_a_reply(ports: dict[str, int]) -> None:
    asked = polar.examples()
    assert len(asked) > 200
    with ThreadPoolExecutor(AT_ONCE * len(ports)) as pool:
        waiting = {name: [pool.submit(judged, port, example) for example in asked] for name, port in ports.items()}
        verdicts = {name: [future.result() for future in found] for name, found in waiting.items()}
    table = [{name: found[number] for name, found in verdicts.items()} for number in range(len(asked))]
    poor = [f"{asked[n]}: {row}" for n, row in enumerate(table) if row["embargo"].startswith(("silence", "unreadable"))]
    missing = [
        f"{asked[n]}: {row}" for n, row in enumerate(table)
        if row["embargo"] != "answer" and all(row[peer] == "answer" for peer in PEERS)
    ]  # fmt: skip
    assert not poor, "\n".join(poor)
    assert not missing, "\n".join(missing)
    (agent,) = _agents
    assert agent.answer("status")["worker_restarts"] == 0
    assert agent.rcode("always.yourdomain.com", "A") == "NOERROR"
    assert agent.blocked("www.alipay.example")
