"""Which upstream next, and how long to wait for it."""

import pytest

from embargo.dns.upstream import DEADLINE, FORGIVEN, LAST_PENALTY, RETRIES, Server, Upstreams, server

A, B, C = (Server(f"192.0.2.{n}", 53) for n in (1, 2, 3))


def test_servers_are_asked_in_the_order_of_the_configuration() -> None:
    upstreams = Upstreams((A, B))
    assert upstreams.choose([], set(), 0.0) == A
    assert upstreams.choose([A], set(), 0.0) == B


def test_one_that_failed_is_set_aside_for_a_time_that_doubles() -> None:
    upstreams = Upstreams((A, B))
    now, until = 100.0, []
    for _ in range(8):
        upstreams.failed(A, "silent", now, now)
        until.append(upstreams.health[A].until - now)
        now += 100
    assert until[:4] == [1.0, 2.0, 4.0, 8.0]
    assert until[-1] == LAST_PENALTY
    assert upstreams.choose([], set(), now - 100 + LAST_PENALTY - 1) == B
    assert upstreams.choose([], set(), now - 100 + LAST_PENALTY + 1) == A
    upstreams.succeeded(A, 0.01)
    upstreams.failed(A, "silent", now, now)
    assert upstreams.health[A].until == now + 1.0


def test_questions_on_their_way_when_a_server_fails_count_once() -> None:
    upstreams = Upstreams((A, B))
    for number in range(50):
        upstreams.failed(A, "silent", 99.0 + number / 100, 100.0 + number / 100)
    assert upstreams.health[A].until == pytest.approx(101.49)
    assert (upstreams.health[A].failed, upstreams.health[A].in_a_row) == (50, 1)


def test_one_question_tries_a_server_that_failed_while_others_go_elsewhere() -> None:
    upstreams = Upstreams((A, B))
    upstreams.failed(A, "silent", 9.0, 10.0)
    assert upstreams.choose([], set(), 10.5) == B
    assert upstreams.choose([], set(), 11.0) == A
    upstreams.asked(A, 11.0)
    assert upstreams.choose([], set(), 11.5) == B
    assert not upstreams.health[A].healthy
    upstreams.succeeded(A, 0.01)
    assert upstreams.choose([], set(), 11.5) == A
    assert upstreams.health[A].healthy


def test_answers_of_no_use_are_forgiven_for_a_while() -> None:
    upstreams = Upstreams((A, B))
    for _ in range(FORGIVEN - 1):
        upstreams.unhelpful(A, "answered SERVFAIL", 10.0, 10.0)
    assert upstreams.health[A].healthy
    upstreams.succeeded(A, 0.01)
    for _ in range(FORGIVEN - 1):
        upstreams.unhelpful(A, "answered SERVFAIL", 10.0, 10.0)
    assert upstreams.health[A].healthy
    upstreams.unhelpful(A, "answered SERVFAIL", 10.0, 10.0)
    assert upstreams.choose([], set(), 10.5) == B
    assert upstreams.health[A].last_error == "answered SERVFAIL"


def test_when_all_are_set_aside_the_next_to_come_back_is_asked() -> None:
    upstreams = Upstreams((A, B))
    upstreams.failed(A, "silent", 0.0, 0.0)
    upstreams.failed(A, "silent", 5.0, 5.0)
    upstreams.failed(B, "silent", 5.0, 5.0)
    assert upstreams.choose([], set(), 5.5) == B


def test_settings_that_name_the_same_servers_are_the_same_whatever_their_health() -> None:
    tried = Upstreams((A, B))
    tried.failed(A, "silent", 0.0, 0.0)
    assert tried == Upstreams((A, B))
    assert tried != Upstreams((B, A))


def test_a_query_is_asked_again_but_not_for_ever_and_never_where_it_cannot_be_helped() -> None:
    upstreams = Upstreams((A, B))
    asked: list[Server] = []
    while (chosen := upstreams.choose(asked, {A} if A in asked else set(), 0.0)) is not None:
        asked.append(chosen)
    assert asked == [A, B, B, B]
    assert len(asked) == len(upstreams.servers) + RETRIES


def test_all_attempts_fit_into_the_deadline() -> None:
    upstreams = Upstreams((A, B, C))
    now = 50.0
    for attempt in range(len(upstreams.servers) + RETRIES):
        now += upstreams.timeout(attempt, 50.0, now)
    assert now <= 50.0 + DEADLINE + 0.2


def test_a_server_is_written_as_it_is_read() -> None:
    for each in (
        A,
        Server("2001:db8::1", 5353),
        Server("192.0.2.9", 53, "tcp"),
        Server("2001:db8::1", 853, "tls", "resolver.example"),
        Server("fe80::1%lan0", 53),
    ):
        assert server(str(each)) == each
