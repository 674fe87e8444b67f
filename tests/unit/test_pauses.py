"""Pauses as values: what they switch off, for which clients, and how they are written."""

import pytest

from embargo.lists import pauses
from embargo.lists.pauses import Pause
from embargo.lists.policy import LOCAL_ALLOW, LOCAL_BLOCK, Action, Class, Switchboard

CLASSES = (LOCAL_ALLOW, LOCAL_BLOCK, Class("alipay", "payment"), Class("alipay", "core"), Class("qq", "payment"))
BOARD = Switchboard((Action.PASS, Action.BLOCK, Action.BLOCK, Action.PASS, Action.AUDIT))


def pause(app: str = "", client: str = "") -> Pause:
    return Pause(app, client, 0.0, 60.0, 0)


def blocked(board: Switchboard) -> set[str]:
    return {str(class_) for class_, action in zip(CLASSES, board.actions, strict=True) if action is not Action.PASS}


def test_an_app_is_paused_with_all_its_functions_and_no_other() -> None:
    board, exempt = pauses.apply([pause("alipay")], CLASSES, BOARD)
    assert blocked(board) == {"local/block", "qq/payment"}
    assert exempt == ()


def test_a_pause_of_everything_takes_the_local_block_list_too() -> None:
    board, _ = pauses.apply([pause()], CLASSES, BOARD)
    assert blocked(board) == set()


def test_without_a_pause_nothing_changes() -> None:
    assert pauses.apply([], CLASSES, BOARD) == (BOARD, ())


def test_a_client_in_two_networks_has_both_pauses_and_the_narrower_comes_first() -> None:
    both = [pause("alipay", "192.0.2.0/24"), pause("qq", "192.0.2.5"), pause("qq", "2001:db8::/64")]
    board, exempt = pauses.apply(both, CLASSES, BOARD)
    assert board == BOARD
    told = {each.network: blocked(each.board) for each in exempt}
    assert told == {
        "192.0.2.5/32": {"local/block"},
        "2001:db8::/64": {"local/block", "alipay/payment"},
        "192.0.2.0/24": {"local/block", "qq/payment"},
    }
    assert [each.network for each in exempt].index("192.0.2.5/32") < [each.network for each in exempt].index("192.0.2.0/24")


def test_clients_keep_what_is_paused_for_everybody_and_nobody_is_named_for_nothing() -> None:
    board, exempt = pauses.apply([pause("alipay"), pause("alipay", "192.0.2.5"), pause("qq", "192.0.2.6")], CLASSES, BOARD)
    assert [each.network for each in exempt] == ["192.0.2.6/32"]
    assert pauses.passed(exempt[0], board, CLASSES) == [Class("qq", "payment")]


@pytest.mark.parametrize(
    ("text", "seconds"), [("90s", 90), ("10m", 600), ("1h30m", 5400), ("2d", 172_800), ("1d1h1m1s", 90_061), ("30d", 2_592_000)]
)
def test_durations(text: str, seconds: int) -> None:
    assert pauses.duration(text) == seconds


@pytest.mark.parametrize("text", ["", "10", "0s", "m", "1.5h", "-1m", "30m1h", "31d", "99999999s", "\u0661h", "1h "])
def test_what_is_no_duration_is_told_what_is(text: str) -> None:
    with pytest.raises(ValueError, match="is not a duration; write 90s, 10m, 1h30m or 2d, at most 30d"):
        pauses.duration(text)


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("192.0.2.5", "192.0.2.5"), ("192.0.2.5/32", "192.0.2.5"), ("192.0.2.0/24", "192.0.2.0/24"),
        ("2001:DB8::1", "2001:db8::1"), ("2001:db8::/64", "2001:db8::/64"),
    ],
)  # fmt: skip
def test_clients(text: str, meant: str) -> None:
    assert pauses.client(text) == meant


def test_what_is_no_client_is_told_what_is() -> None:
    with pytest.raises(ValueError, match="name an address or a network"):
        pauses.client("printer")
    with pytest.raises(ValueError, match=r"name 192\.0\.2\.0/24 or the address alone"):
        pauses.client("192.0.2.5/24")
