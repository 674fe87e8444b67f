"""Which upstream next, and how long to wait for it."""

import pytest

from embargo import names
from embargo.dns.upstream import (
    DEADLINE,
    FIRST_WAIT,
    FORGIVEN,
    LAST_PENALTY,
    LEAST_WAIT,
    PLAIN_FOR,
    RETRIES,
    SEVERAL,
    Server,
    Upstreams,
    server,
)

A, B, C = (Server(f"192.0.2.{n}", 53) for n in (1, 2, 3))
ZONES = [names.from_text(f"z{number}.test") for number in range(FORGIVEN)]
ZONE = ZONES[0]


def test_servers_are_asked_in_the_order_of_the_configuration() -> None:
    upstreams = Upstreams((A, B))
    assert upstreams.choose([], set(), 0.0) == A
    assert upstreams.choose([A], set(), 0.0) == B


def test_one_that_failed_is_set_aside_for_a_time_that_doubles() -> None:
    upstreams = Upstreams((A, B))
    now, until = 100.0, []
    for zone in ZONES:
        upstreams.failed(A, "refused", zone, now, now)
        until.append(upstreams.health[A].until - now)
        now += 100
    assert until[SEVERAL - 1 : SEVERAL + 3] == [1.0, 2.0, 4.0, 8.0]
    assert until[-1] == LAST_PENALTY
    assert upstreams.choose([], set(), now - 100 + LAST_PENALTY - 1) == B
    assert upstreams.choose([], set(), now - 100 + LAST_PENALTY + 1) == A
    upstreams.succeeded(A, 0.01, now)
    upstreams.failed(A, "refused", ZONE, now, now + 1.0)
    assert upstreams.health[A].until == 0.0, "it has answered since"
    upstreams.failed(A, "refused", ZONE, now + 1.0, now + 1.0)
    assert upstreams.health[A].until == now + 2.0


def test_questions_on_their_way_when_a_server_fails_count_once() -> None:
    upstreams = Upstreams((A, B))
    for number in range(50):
        upstreams.failed(A, "refused", ZONES[number % SEVERAL], 99.0 + number / 100, 100.0 + number / 100)
    assert upstreams.health[A].until == pytest.approx(101.49)
    assert (upstreams.health[A].failed, upstreams.health[A].in_a_row) == (50, 1)


def test_one_question_tries_a_server_that_failed_while_others_go_elsewhere() -> None:
    upstreams = Upstreams((A, B))
    upstreams.failed(A, "refused", ZONE, 9.0, 10.0)
    assert upstreams.choose([], set(), 10.5) == B
    assert upstreams.choose([], set(), 11.0) == A
    upstreams.asked(A, 11.0)
    assert upstreams.choose([], set(), 11.5) == B
    assert not upstreams.health[A].healthy
    upstreams.succeeded(A, 0.01, 11.5)
    assert upstreams.choose([], set(), 11.5) == A
    assert upstreams.health[A].healthy


def test_answers_of_no_use_are_forgiven_for_a_while() -> None:
    upstreams = Upstreams((A, B))
    for zone in ZONES[1:]:
        upstreams.unhelpful(A, "answered SERVFAIL", zone, 10.0, 10.0)
    assert upstreams.health[A].healthy
    upstreams.succeeded(A, 0.01, 10.0)
    for zone in ZONES[1:]:
        upstreams.unhelpful(A, "answered SERVFAIL", zone, 10.0, 10.0)
    assert upstreams.health[A].healthy
    upstreams.unhelpful(A, "answered SERVFAIL", ZONES[0], 10.0, 10.0)
    assert upstreams.choose([], set(), 10.5) == B
    assert upstreams.health[A].last_error == "answered SERVFAIL"


# ── evidence for a server, and for a name ────────────────────────────────────────────────────────────────────────────────


def doubts(upstreams: Upstreams, zone: names.Name, now: float, *, silent: bool) -> None:
    """The first server was of no use for a name: it answered SERVFAIL and the second knew the name, or it was silent."""
    if silent:
        upstreams.health[A].heard = now - 0.1  # it answers other questions
        upstreams.overdue(A, "did not answer", zone, now - 1.0, now)
    else:
        upstreams.unhelpful(A, "answered SERVFAIL", zone, now, now)
        upstreams.outdone(A, zone, now, now)


def test_a_connection_that_is_closed_for_one_name_is_never_a_long_absence() -> None:
    """A server may close the connection, or end, at one odd name."""
    upstreams = Upstreams((A, B))
    for number in range(20):
        upstreams.failed(A, "closed the connection", ZONE, number * 60.0, number * 60.0)
        assert upstreams.health[A].until <= number * 60.0 + 1.0


@pytest.mark.parametrize("silent", [True, False])
def test_names_of_one_zone_never_set_a_server_aside(silent: bool) -> None:
    upstreams = Upstreams((A, B))
    for second in range(100):
        doubts(upstreams, ZONE, second * 60.0, silent=silent)
    assert upstreams.health[A].healthy


@pytest.mark.parametrize("silent", [True, False])
def test_names_of_several_zones_do_unless_an_answer_comes_between(silent: bool) -> None:
    upstreams = Upstreams((A, B))
    for number, zone in enumerate(ZONES):
        doubts(upstreams, zone, 10.0 + number, silent=silent)
        if number % 2:
            upstreams.succeeded(A, 0.01, 10.0 + number)
    assert upstreams.health[A].healthy
    for number, zone in enumerate(ZONES[:SEVERAL]):
        assert upstreams.health[A].healthy
        doubts(upstreams, zone, 30.0 + number, silent=silent)
    assert not upstreams.health[A].healthy


def test_silence_to_everything_sets_a_server_aside_and_a_late_answer_brings_it_back() -> None:
    upstreams = Upstreams((A, B))
    upstreams.overdue(A, "did not answer", ZONE, 9.0, 10.0)
    assert upstreams.choose([], set(), 10.5) == B
    upstreams.succeeded(A, 1.6, 10.6)
    assert upstreams.choose([], set(), 10.6) == A


def test_silence_to_one_zone_is_never_a_long_absence() -> None:
    """A client with one silent zone may be the only one that asks."""
    upstreams = Upstreams((A, B))
    for number in range(20):
        upstreams.overdue(A, "did not answer", ZONE, number * 60.0, number * 60.0 + 1.0)
        assert upstreams.choose([], set(), number * 60.0 + 2.0) == A


def test_a_zone_is_told_by_two_labels_beside_those_that_all_names_of_its_servers_have() -> None:
    def zone(name: str, common_labels: int = 0) -> str:
        return names.to_text(Upstreams((A,), common_labels=common_labels).zone(names.from_text(name)))

    assert [zone(name) for name in ("a.b.example.net", "example.net", "net", ".")] == ["example.net", "example.net", "net", "."]
    assert [zone(name, 2) for name in ("a.b.c.corp.test", "b.corp.test", "corp.test")] == [
        "b.c.corp.test",
        "b.corp.test",
        "corp.test",
    ]


def test_edns_is_given_up_after_several_zones_and_never_by_a_server_that_has_used_it() -> None:
    upstreams = Upstreams((A,))
    for _ in range(50):
        upstreams.answered_plain(A, ZONE, 10.0)
    assert upstreams.health[A].plain_until == 0.0
    for zone in ZONES[1:SEVERAL]:
        upstreams.answered_plain(A, zone, 10.0)
    assert upstreams.health[A].plain_until == 10.0 + PLAIN_FOR
    upstreams.answered_edns(A)
    for zone in ZONES:
        upstreams.answered_plain(A, zone, 20.0)
    assert upstreams.health[A].plain_until == 0.0


def test_the_zones_of_an_outage_are_bounded() -> None:
    upstreams = Upstreams((A,))
    for number in range(1000):
        zone = names.from_text(f"z{number}.test")
        upstreams.overdue(A, "did not answer", zone, number, number + 1.0)
        upstreams.unhelpful(A, "answered SERVFAIL", zone, number, number + 1.0)
        upstreams.answered_plain(A, zone, 0.0)
    health = upstreams.health[A]
    assert max(len(zones) for zones in (health.useless, health.outdone, health.plain_in)) <= FORGIVEN


def test_when_all_are_set_aside_the_next_to_come_back_is_asked() -> None:
    upstreams = Upstreams((A, B))
    for zone in ZONES[: SEVERAL + 1]:
        upstreams.failed(A, "refused", zone, 5.0, 5.0)
    upstreams.set_aside(A, 5.0, 5.0)
    upstreams.failed(B, "refused", ZONE, 5.0, 5.0)
    assert upstreams.choose([], set(), 5.5) == B


def test_settings_that_name_the_same_servers_are_the_same_whatever_their_health() -> None:
    tried = Upstreams((A, B))
    tried.failed(A, "refused", ZONE, 0.0, 0.0)
    assert tried == Upstreams((A, B))
    assert tried != Upstreams((B, A))


def test_a_query_is_asked_again_but_not_for_ever_and_never_where_it_cannot_be_helped() -> None:
    upstreams = Upstreams((A, B))
    asked: list[Server] = []
    while (chosen := upstreams.choose(asked, {A} if A in asked else set(), 0.0)) is not None:
        asked.append(chosen)
    assert asked == [A, B, B, B]
    assert len(asked) == len(upstreams.servers) + RETRIES


# ── the time to wait ─────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("seconds", [None, 0.001, 0.3, 1.1, 3.0, 9.0])
def test_all_attempts_fit_into_the_deadline(seconds: float | None) -> None:
    """However long the servers usually need, each is asked while there is time for its answer."""
    upstreams = Upstreams((A, B, C))
    for each in upstreams.servers if seconds else ():
        upstreams.succeeded(each, seconds or 0.0, 0.0)
    now, asked = 50.0, list[Server]()
    while (chosen := upstreams.choose(asked, set(), now)) is not None and now < 50.0 + DEADLINE:
        wait = upstreams.wait(chosen, asked, 50.0, now)
        asked.append(chosen)
        now += wait
    assert asked[:3] == [A, B, C]
    assert len(asked) <= len(upstreams.servers) + RETRIES
    assert now <= 50.0 + DEADLINE + 0.2


def test_a_server_is_given_the_time_that_it_usually_needs() -> None:
    upstreams = Upstreams((A,))
    assert upstreams.wait(A, (), 0.0, 0.0) == FIRST_WAIT
    for _ in range(100):
        upstreams.succeeded(A, 0.02, 0.0)
    assert upstreams.wait(A, (), 0.0, 0.0) == LEAST_WAIT
    assert upstreams.wait(A, (A,), 0.0, 0.0) == 2 * LEAST_WAIT, "RFC 6298 section 5.5"
    for _ in range(100):
        upstreams.succeeded(A, 1.6, 0.0)
    assert 1.6 < upstreams.wait(A, (), 0.0, 0.0) < 2.2
    upstreams.succeeded(A, 0.1, 0.0)
    upstreams.succeeded(A, 3.0, 0.0)
    assert upstreams.wait(A, (), 0.0, 0.0) > 3.0, "the more it varies, the longer"


def test_a_slow_server_leaves_time_for_the_others() -> None:
    upstreams = Upstreams((A, B, C))
    upstreams.succeeded(A, 3.0, 0.0)
    assert upstreams.wait(A, (), 0.0, 0.0) == DEADLINE / 3
    assert upstreams.wait(C, (A, B), 0.0, DEADLINE - 1.0) == FIRST_WAIT


def test_a_server_is_written_as_it_is_read() -> None:
    for each in (
        A,
        Server("2001:db8::1", 5353),
        Server("192.0.2.9", 53, "tcp"),
        Server("2001:db8::1", 853, "tls", "resolver.example"),
        Server("fe80::1%lan0", 53),
    ):
        assert server(str(each)) == each
