"""Which upstream next, and how long to wait for it."""

from embargo.upstream import DEADLINE, LAST_PENALTY, RETRIES, Server, Upstreams, server

A, B, C = (Server(f"192.0.2.{n}", 53) for n in (1, 2, 3))


def test_servers_are_asked_in_the_order_of_the_configuration() -> None:
    upstreams = Upstreams((A, B))
    assert upstreams.choose([], set(), 0.0) == A
    assert upstreams.choose([A], set(), 0.0) == B


def test_one_that_failed_is_set_aside_for_a_time_that_doubles() -> None:
    upstreams = Upstreams((A, B))
    until = []
    for _ in range(8):
        upstreams.failed(A, "silent", 100.0)
        until.append(upstreams.health[A].until - 100.0)
    assert until[:4] == [1.0, 2.0, 4.0, 8.0]
    assert until[-1] == LAST_PENALTY
    assert upstreams.choose([], set(), 100.0 + LAST_PENALTY - 1) == B
    assert upstreams.choose([], set(), 100.0 + LAST_PENALTY + 1) == A
    upstreams.succeeded(A, 0.01)
    upstreams.failed(A, "silent", 200.0)
    assert upstreams.health[A].until == 201.0


def test_when_all_are_set_aside_the_next_to_come_back_is_asked() -> None:
    upstreams = Upstreams((A, B))
    upstreams.failed(A, "silent", 0.0)
    upstreams.failed(A, "silent", 0.0)
    upstreams.failed(B, "silent", 0.0)
    assert upstreams.choose([], set(), 0.5) == B


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
    for each in (A, Server("2001:db8::1", 5353), Server("192.0.2.9", 53, tcp=True), Server("fe80::1%lan0", 53)):
        assert server(str(each)) == each
