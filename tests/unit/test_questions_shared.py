"""Questions on their way are bounded, and clients and zones share the places: nobody takes them from others."""

import dns.message
import dns.rcode

from embargo import names
from embargo.dns import message
from embargo.dns.engine import Joined
from embargo.dns.questions import MAX_BACKGROUND, MAX_OF_ZONE, MAX_PASSED_ON, MAX_PENDING, MAX_WAITING
from support.playbook import CLIENT, Play, answer, play

OTHER = "192.0.2.99"


def flooded(name: str = "n{}.z{}.test") -> Play:
    """One client has asked for as many names as there are places."""
    found = play()
    for number in range(MAX_PENDING):
        found.query(name.format(number, number)).is_forwarded()
    return found


def test_a_flood_of_one_client_is_bounded_and_gives_way_to_its_own_questions_and_others() -> None:
    found = flooded().query("other.test", client=OTHER).is_forwarded()
    assert found.engine.pending == MAX_PENDING
    assert found.query("one.more.test").is_forwarded().engine.pending == MAX_PENDING
    assert found.query("n9.z9.test").outcome == Joined()
    assert found.query("n1.z1.test").is_forwarded().engine.pending == MAX_PENDING, "the oldest gave way"
    replies = [dns.message.from_wire(reply.wire) for reply in found.engine.give_up(found.now)]
    assert [(str(reply.question[0].name), reply.rcode()) for reply in replies] == [
        ("n0.z0.test.", dns.rcode.SERVFAIL), ("n1.z1.test.", dns.rcode.SERVFAIL), ("n2.z2.test.", dns.rcode.SERVFAIL),
    ]  # fmt: skip
    assert found.engine.give_up(found.now) == []


def test_a_question_that_others_wait_for_too_goes_on_for_them() -> None:
    found = flooded().query("n0.z0.test", client=OTHER)
    found.query("more.test")
    assert [reply.client for reply in found.engine.give_up(found.now)] == [CLIENT, CLIENT], "of the two oldest"
    assert found.query("n0.z0.test", client=OTHER).outcome == Joined()
    for number in range(MAX_PENDING):
        found.query(f"again{number}.z{number}.test")
    assert {reply.client for reply in found.engine.give_up(found.now)} == {CLIENT}


def test_one_zone_has_half_of_the_places_and_others_the_rest() -> None:
    """A zone whose servers are dead, and a thousand clients that ask for names in it."""
    found = play()
    for number in range(MAX_OF_ZONE):
        found.query("free.test" if not number else f"free.z{number}.test", client="192.0.2.8")
    for number in range(MAX_PENDING):
        found.query(f"n{number}.corp.dead.test", client=f"192.0.2.{100 + number % 100}").is_forwarded()
    assert {reply.client for reply in found.engine.give_up(found.now)}.isdisjoint({"192.0.2.8"})
    assert found.engine.pending == MAX_OF_ZONE + MAX_OF_ZONE


def test_the_answer_to_a_question_that_gave_way_is_still_used() -> None:
    found = play().query("n0.test")
    first = found.forward
    for number in range(1, MAX_PENDING + 1):
        found.query(f"n{number}.z{number}.test")
    assert first is not None
    found.engine.give_up(found.now)
    found.engine.complete(first.token, answer("n0.test", "A", "192.0.2.1").to_wire(), found.now)
    found.query("n0.test").replies("192.0.2.1")


def test_an_expired_answer_is_given_out_before_servfail_when_a_question_gives_way() -> None:
    found = play().query("free.test").upstream(answer("free.test", "A", "192.0.2.1", ttl=5))
    found.now += 10
    found.query("free.test").is_forwarded()
    for number in range(MAX_PENDING):
        found.query(f"n{number}.z{number}.test")
    (reply,) = found.engine.give_up(found.now)
    assert dns.message.from_wire(reply.wire).answer[0][0].to_text() == "192.0.2.1"


def test_questions_for_no_client_have_places_of_their_own() -> None:
    found = flooded()
    for number in range(MAX_BACKGROUND):
        assert found.engine.look_behind(names.from_text(f"b{number}.test"), message.A, found.now) is not None
    assert found.engine.look_behind(names.from_text("more.test"), message.A, found.now) is None
    assert found.engine.pending == MAX_PENDING + MAX_BACKGROUND
    assert found.engine.give_up(found.now) == []


def test_waiting_clients_are_bounded_and_one_alone_leaves_half_of_the_room() -> None:
    found = play().query("free.test")
    for ident in range(1, MAX_WAITING // 2):
        found.query("free.test", ident=ident)
        assert found.outcome == Joined()
    assert found.query("free.test", edns=False).replies(rcode=dns.rcode.SERVFAIL).engine.pending == 1
    assert found.query("free.test", client=OTHER).outcome == Joined()
    assert len(found.upstream(answer("free.test", "A", "192.0.2.1", ttl=0)).settled) == MAX_WAITING // 2 + 1
    found.query("free.test").is_forwarded().query("free.test")
    assert found.outcome == Joined()


def test_room_for_one_client_is_made_in_a_few_steps_whoever_waits_for_the_questions() -> None:
    """A question that many wait for was handed from one to the next: 84 ms for one query."""
    hosts = [[f"2001:db8::{host:x}" for host in range(1, 4)], [f"2001:db8:0:{net:x}::1" for net in range(1, 11)]]
    for clients, gave_way in ((hosts[0], 1), (hosts[1], MAX_PASSED_ON + 1)):
        found = play()
        for client in clients:
            for number in range(MAX_OF_ZONE):
                found.query(f"n{number}.evil.test", client=client)
        found.query("more.evil.test", client=OTHER).is_forwarded()
        assert len(found.engine._questions._gave_way) == gave_way
        assert found.engine.pending == MAX_OF_ZONE, "one has ended"
