"""Upstreams that lose, delay, garble, truncate, refuse or ignore queries: allowed names are answered or fail in time."""

import contextlib
import random
import time
from collections.abc import Iterator, Sequence

import dns.flags
import dns.message
import dns.rcode
import pytest

from faults.conftest import gateway
from support.agent import Agent, running
from support.load import APPS, Load, all_accounted, bounded, rcode, uses
from support.upstream import Asked, Elsewhere, Late, Script, Upstream, right
from tools.rig import Rig, until

pytestmark = pytest.mark.root

TROUBLE = 1.0  # seconds
Sent = Sequence[bytes | Late | Elsewhere]
chance = random.Random(17)


def good(asked: Asked) -> Sent:
    return [right(asked)]


def lossy(asked: Asked) -> Sent:
    return [right(asked)] if chance.random() < 0.5 else []


def late(asked: Asked) -> Sent:
    return [Late(chance.uniform(0.1, 3.0), right(asked))]


def garbage(asked: Asked) -> Sent:
    return [chance.randbytes(chance.randrange(600)) for _ in range(3)]


def garbled(asked: Asked) -> Sent:
    """The right answer with some octets after its flags changed."""
    wire = bytearray(right(asked))
    for _ in range(4):
        wire[chance.randrange(4, len(wire))] = chance.randrange(256)
    return [bytes(wire)]


def cut(asked: Asked) -> Sent:
    wire = right(asked)
    return [wire[: chance.randrange(len(wire))]]


def truncated(asked: Asked) -> Sent:
    """TC over UDP, the full answer over TCP."""
    if asked.tcp:
        return [right(asked)]
    made = dns.message.make_response(asked.message)
    made.flags |= dns.flags.TC | dns.flags.RA
    return [made.to_wire()]


def silent(asked: Asked) -> Sent:
    return []


def refusing(asked: Asked) -> Sent:
    made = dns.message.make_response(asked.message)
    made.set_rcode(dns.rcode.REFUSED)
    return [made.to_wire()]


def failing(asked: Asked) -> Sent:
    made = dns.message.make_response(asked.message)
    made.set_rcode(dns.rcode.SERVFAIL)
    return [made.to_wire()]


def another(asked: Asked) -> Sent:
    """The answer to another question, and the right answer from another port."""
    other = dns.message.make_query("other.test", "A", id=asked.message.id)
    return [right(asked._replace(message=other), "203.0.113.200"), Elsewhere(right(asked, "203.0.113.200"))]


def leading(asked: Asked) -> Sent:
    """Every name leads to a listed address."""
    return [right(asked, "203.0.113.200")]


@pytest.fixture(scope="module")
def upstream(faulty: Rig) -> Iterator[Upstream]:
    with faulty.within("gateway", lambda: Upstream(good)) as made:
        yield made


@pytest.fixture(scope="module")
def agent(faulty: Rig, upstream: Upstream, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Agent]:
    sections = gateway(dns={"upstream": [f"127.0.0.1:{upstream.port}"]})
    root = tmp_path_factory.mktemp("upstreams")
    with running(root, prefix=faulty.prefix("gateway"), apps=APPS, **sections) as started:
        yield started


def back(load: Load) -> None:
    """Wait until new names are resolved."""
    first = len(load.questions)

    def resolved() -> int:
        fresh = [each for each in load.questions[first:] if each.name.startswith("fresh") and each.replies]
        return sum(rcode(each.replies[0][1]) == "NOERROR" for each in fresh) > 10

    until(resolved, "new names are resolved again", 30)


@pytest.mark.parametrize(
    "script",
    [lossy, late, garbage, garbled, cut, truncated, silent, refusing, failing, another],
    ids=lambda each: each.__name__,
)
def test_a_faulty_upstream_delays_but_does_not_stop_service(
    faulty: Rig, agent: Agent, upstream: Upstream, script: Script
) -> None:
    before = uses(agent)
    with Load(faulty, probes=False) as load:
        upstream.script = script
        asked = len(upstream.asked)
        time.sleep(TROUBLE)
        load.goes_on()
        assert len(upstream.asked) > asked + 20, "it was felt"
        upstream.script = good
        back(load)
    load.holds()
    bounded(before, uses(agent))


def test_an_upstream_whose_every_answer_leads_to_a_listed_address(faulty: Rig, agent: Agent, upstream: Upstream) -> None:
    with Load(faulty, probes=False) as load:
        first = len(load.questions)
        upstream.script = leading
        time.sleep(TROUBLE)
        last = len(load.questions)
        upstream.script = good
        back(load)
    assert not load.leaked()
    fresh = [each for each in load.questions[first + 20 : last - 20] if each.name.startswith("fresh")]
    assert {rcode(data) for each in fresh for _, data in each.replies} == {"NXDOMAIN"}


def test_an_upstream_that_returns_is_used_again(faulty: Rig, agent: Agent) -> None:
    with contextlib.ExitStack() as upstreams:
        gone = faulty.within("gateway", lambda: Upstream(good))
        agent.write_config(dns={"upstream": [f"127.0.0.1:{gone.port}"]})
        with gone:
            assert agent.ask("reload")["ok"]
            load = upstreams.enter_context(Load(faulty, probes=False))
        time.sleep(TROUBLE)
        load.goes_on()
        again = upstreams.enter_context(faulty.within("gateway", lambda: Upstream(good, gone.port)))
        back(load)
        assert again.asked
    load.holds()
    all_accounted(agent, load)
