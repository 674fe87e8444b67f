"""Private addresses in answers of the Internet's servers ([dns] rebind): whose they are, and whose they may be."""

import pytest

from embargo import names
from embargo.dns.upstream import Strip, Upstreams
from embargo.dns.zones import Zones
from support.playbook import SERVERS, Play, answer, rules

ZONES = Zones(Upstreams(SERVERS, Strip(private=True)), private=frozenset({names.from_text("plex.test")}))
MIXED = ("10.0.0.1", "192.0.2.1")


def playing(allow: str = "") -> Play:
    return Play(rules(allow=allow), ZONES)


@pytest.mark.parametrize(
    ("name", "allow", "stays"),
    [
        ("free.test", "", False), ("box.plex.test", "", True), ("plex.test", "", True), ("box.plex.test.free.test", "", False),
        ("free.test", "free.test", True), ("a.free.test", "free.test", True), ("a.free.test", "=free.test", False),
        ("xfree.test", "free.test", False),
    ],
)  # fmt: skip
def test_private_addresses_stay_where_they_are_meant(name: str, allow: str, stays: bool) -> None:
    expected = MIXED if stays else MIXED[1:]
    found = playing(allow).query(name).upstream(answer(name, "A", *MIXED)).replies(*expected)
    found.query(name).forwards_nothing().replies(*expected)


@pytest.mark.parametrize("before", ["", "free.test"])
def test_a_change_of_the_allow_list_counts_for_cached_answers_too(before: str) -> None:
    after = "" if before else "free.test"
    found = playing(before).query("free.test").upstream(answer("free.test", "A", *MIXED))
    found.query("other.test").upstream(answer("other.test", "A", "192.0.2.9"))
    found.adopt(rules(allow=after, number=2)).query("free.test").is_forwarded().upstream(answer("free.test", "A", *MIXED))
    found.replies(*(MIXED if after else MIXED[1:]))
    found.query("other.test").forwards_nothing().replies("192.0.2.9")


def test_an_alias_of_a_name_with_private_addresses_has_none() -> None:
    """Else a foreign name could lead into the LAN by way of it."""
    made = answer("free.test", "A", "free.test CNAME box.plex.test.", "box.plex.test A 10.0.0.1")
    assert len(playing().query("free.test").upstream(made).reply.answer) == 1
