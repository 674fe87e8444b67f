"""An agent and upstreams that misbehave: the client gets the right answer or SERVFAIL, and nothing forged."""

import contextlib
from collections.abc import Iterator

import dns.flags
import dns.message
import dns.rcode
import pytest

from support.agent import Agent, running
from support.upstream import Asked, Script, Upstream, right


@pytest.fixture(scope="module")
def agent(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Agent]:
    with running(tmp_path_factory.mktemp("forward")) as started:
        yield started


def asking(agent: Agent, *upstreams: Upstream, scheme: str = "") -> None:
    """From now on the agent asks these, and knows nothing."""
    agent.write_config(dns={"upstream": [f"{scheme}127.0.0.1:{each.port}" for each in upstreams]})
    agent.cli("reload")


def other_id(asked: Asked) -> bytes:
    wire = right(asked, "203.0.113.66")
    return (int.from_bytes(wire[:2]) ^ 0x5555).to_bytes(2) + wire[2:]


def other_question(asked: Asked) -> bytes:
    return right(asked, "203.0.113.66").replace(b"\4free", b"\4fref")


def other_case(asked: Asked) -> bytes:
    return right(asked, "203.0.113.66").replace(b"\4free", b"\4FREE")


def no_response(asked: Asked) -> bytes:
    wire = bytearray(right(asked, "203.0.113.66"))
    wire[2] &= 0x7F
    return bytes(wire)


def torn(asked: Asked) -> bytes:
    return right(asked, "203.0.113.66")[:-2]


FORGED = (other_id, other_question, other_case, no_response, torn, lambda _: b"\0", lambda asked: asked.wire[:11])


@pytest.mark.parametrize("forged", FORGED)
def test_what_does_not_match_is_passed_over_until_the_right_answer_comes(agent: Agent, forged: object) -> None:
    assert callable(forged)
    with Upstream(lambda asked: [forged(asked)] * 50 + [right(asked)]) as upstream:
        asking(agent, upstream)
        assert agent.dig("+short", "free.test").split() == ["192.0.2.80"]
        assert len(upstream.asked) == 1
    assert agent.told("status")["counters"]["mismatched"] >= 50


def test_ports_and_ids_are_random_and_questions_are_ours(agent: Agent) -> None:
    with Upstream(lambda asked: [right(asked)]) as upstream:
        asking(agent, upstream)
        for number in range(40):
            agent.dig(f"Name{number}.Test", "+subnet=198.51.100.0/24", "+cookie", "+bufsize=4096")
        ports, idents = {each.port for each in upstream.asked}, {each.message.id for each in upstream.asked}
        assert len(upstream.asked) == 40
        assert len(ports) > 35
        assert len(idents) > 35
        for each in upstream.asked:
            assert each.message.options == ()
            assert each.message.payload == 1232
            assert each.message.question[0].name.to_text() == each.message.question[0].name.to_text().lower()


def test_a_truncated_response_is_fetched_over_tcp(agent: Agent) -> None:
    def script(asked: Asked) -> list[bytes]:
        if asked.tcp:
            return [right(asked)]
        made = dns.message.make_response(asked.message)
        made.flags |= dns.flags.TC
        return [made.to_wire()]

    with Upstream(script) as upstream:
        asking(agent, upstream)
        assert agent.dig("+short", "free.test").split() == ["192.0.2.80"]
        assert [each.tcp for each in upstream.asked] == [False, True]


def test_an_upstream_over_tcp_is_asked_over_tcp_alone(agent: Agent) -> None:
    with Upstream(lambda asked: [other_id(asked), right(asked)]) as upstream:
        asking(agent, upstream, scheme="tcp://")
        assert agent.dig("+short", "free.test").split() == ["192.0.2.80"]
        assert [each.tcp for each in upstream.asked] == [True]


@pytest.mark.parametrize("rcode", [dns.rcode.SERVFAIL, dns.rcode.REFUSED])
def test_the_next_server_is_asked_when_one_cannot_help(agent: Agent, rcode: dns.rcode.Rcode) -> None:
    def refuse(asked: Asked) -> list[bytes]:
        made = dns.message.make_response(asked.message)
        made.set_rcode(rcode)
        return [made.to_wire()]

    with Upstream(refuse) as first, Upstream(lambda asked: [right(asked)]) as second:
        asking(agent, first, second)
        assert agent.dig("+short", "free.test").split() == ["192.0.2.80"]
        assert (len(first.asked), len(second.asked)) == (1, 1)


def test_the_next_server_is_asked_when_one_is_silent_or_torn(agent: Agent) -> None:
    scripts: tuple[Script, ...] = (lambda asked: [torn(asked)], lambda _: [], lambda asked: [right(asked)])
    with contextlib.ExitStack() as stack:
        cut, silent, good = (stack.enter_context(Upstream(script)) for script in scripts)
        asking(agent, cut, silent, good)
        assert agent.dig("+short", "free.test").split() == ["192.0.2.80"]
        assert agent.dig("+short", "other.test").split() == ["192.0.2.80"]
        assert (len(cut.asked), len(silent.asked)) == (1, 1), "they are set aside"


def test_when_nobody_answers_the_client_is_told_in_time(agent: Agent) -> None:
    with Upstream(lambda _: []) as silent:
        asking(agent, silent)
        said = agent.dig("free.test")
        assert "status: SERVFAIL" in said
        assert "EDE: 22" in said


def test_a_closed_port_is_an_error_of_the_network(agent: Agent) -> None:
    with Upstream(lambda _: []) as gone:
        asking(agent, gone)
    said = agent.dig("free.test")
    assert "status: SERVFAIL" in said
    assert "EDE: 23" in said or "EDE: 22" in said


def test_many_clients_of_one_question_are_one_query(agent: Agent) -> None:
    with Upstream(lambda asked: [right(asked)]) as upstream:
        asking(agent, upstream)
        for _ in range(5):
            assert agent.dig("+short", "FREE.test").split() == ["192.0.2.80"]
        assert len(upstream.asked) == 1
        assert agent.dig("+short", "+dnssec", "free.test").split() == ["192.0.2.80"]
        assert len(upstream.asked) == 2
