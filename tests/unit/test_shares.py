"""Turns go round by group of clients and by client, and no client fills the queue alone."""

from hypothesis import given
from hypothesis import strategies as st

from embargo.dns import shares
from embargo.dns.shares import Places, Turns

CLIENTS = ("192.0.2.1", "192.0.2.2", "2001:db8::1", "2001:db8::2", "2001:db8:0:1::1", "fe80::1%lan0")


def test_an_ipv4_address_is_a_group_and_the_addresses_of_an_ipv6_network_are_one() -> None:
    assert shares.group("192.0.2.1") == shares.group("::ffff:192.0.2.1") != shares.group("192.0.2.2")
    assert shares.group("2001:db8::1") == shares.group("2001:db8::ffff:0:0:1") != shares.group("2001:db8:0:1::1")
    assert shares.group("fe80::1%lan0") == shares.group("fe80::2")


def test_a_group_that_many_addresses_ask_for_is_found_without_filling_memory() -> None:
    for number in range(2 * shares.MEMO):
        shares.group(f"2001:db8::{number:x}")
    assert len(shares._groups) <= shares.MEMO


def test_who_asks_once_is_next_although_another_has_asked_a_hundred_times() -> None:
    turns: Turns[str] = Turns(1000)
    for number in range(100):
        assert turns.add("192.0.2.1", f"a{number}")
    assert turns.add("192.0.2.2", "b")
    assert [turns.next() for _ in range(3)] == ["a0", "b", "a1"]


def test_many_addresses_of_one_network_have_one_turn_in_a_round() -> None:
    turns: Turns[str] = Turns(1000)
    for number in range(50):
        turns.add(f"2001:db8::{number:x}", f"a{number}")
    turns.add("192.0.2.2", "b")
    turns.add("192.0.2.2", "c")
    assert [turns.next() for _ in range(5)] == ["a0", "b", "a1", "c", "a2"]


def test_one_client_leaves_half_of_the_room_to_the_next() -> None:
    turns: Turns[int] = Turns(100)
    assert sum(turns.add("192.0.2.1", number) for number in range(1000)) == 50
    assert sum(turns.add("192.0.2.2", number) for number in range(1000)) == 25
    assert turns.add("192.0.2.3", 1)


def test_what_may_not_be_refused_is_taken_although_there_is_no_room() -> None:
    turns: Turns[int] = Turns(1)
    assert turns.add("192.0.2.1", 1)
    assert not turns.add("192.0.2.1", 2)
    assert turns.add("192.0.2.1", 3, always=True)
    assert [turns.next(), turns.next(), turns.next()] == [1, 3, None]


@given(st.lists(st.one_of(st.none(), st.sampled_from(CLIENTS)), max_size=200), st.integers(1, 20))
def test_each_item_has_its_turn_once_and_a_clients_items_keep_their_order(steps: list[str | None], limit: int) -> None:
    turns: Turns[tuple[str, int]] = Turns(limit)
    waiting: list[tuple[str, int]] = []
    for number, client in enumerate(steps):
        if client is not None:
            if turns.add(client, (client, number)):
                waiting.append((client, number))
            assert len(turns) == len(waiting) <= limit
        elif (item := turns.next()) is not None:
            assert item == next(each for each in waiting if each[0] == item[0])
            waiting.remove(item)
        else:
            assert not waiting
    rest = []
    while (item := turns.next()) is not None:
        rest.append(item)
    assert sorted(rest) == sorted(waiting)


# ── places ───────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_oldest_item_of_the_client_with_the_most_gives_way() -> None:
    places: Places[str] = Places(3, 3)
    assert places.giving_way("zone") is None
    for item, client in (("other", "192.0.2.2"), ("first", "192.0.2.1"), ("second", "192.0.2.1")):
        places.add(item, client, "zone")
    assert places.giving_way("another zone") == "first"
    places.remove("first")
    assert places.giving_way("zone") is None
    assert (places.client("second"), places.client("first")) == ("192.0.2.1", "")


def test_many_addresses_of_one_network_are_one_client_among_others() -> None:
    places: Places[str] = Places(8, 8)
    for number in range(3):
        places.add(f"many{number}", "192.0.2.1", "zone")
    for number in range(5):
        places.add(f"net{number}", f"2001:db8::{number:x}", "zone")
    assert places.giving_way("zone") == "net0"


def test_a_zone_that_has_its_part_takes_from_itself() -> None:
    places: Places[str] = Places(100, 2)
    places.add("most0", "192.0.2.1", "living")
    places.add("most1", "192.0.2.1", "other")
    places.add("dead0", "192.0.2.1", "dead")
    places.add("dead1", "192.0.2.2", "dead")
    assert places.giving_way("living") is None
    assert places.giving_way("dead") == "dead0"


@given(st.lists(st.tuples(st.sampled_from(CLIENTS), st.sampled_from("xyz"), st.booleans()), max_size=80))
def test_places_are_taken_and_freed_as_in_a_plain_list(steps: list[tuple[str, str, bool]]) -> None:
    places: Places[int] = Places(10, 5)
    taken: list[tuple[int, str, str]] = []
    for item, (client, zone, free) in enumerate(steps):
        if free and taken:
            places.remove(taken.pop(item % len(taken))[0])
        while (gone := places.giving_way(zone)) is not None:
            of_zone = [each for each in taken if each[2] == zone]
            held = of_zone if len(of_zone) >= 5 else taken
            groups = [shares.group(each[1]) for each in held]
            (leaving,) = (each for each in held if each[0] == gone)
            assert groups.count(shares.group(leaving[1])) == max(map(groups.count, groups))
            taken.remove(leaving)
            places.remove(gone)
        places.add(item, client, zone)
        taken.append((item, client, zone))
        assert len(places) == len(taken) <= 10
