"""What a start needs of the machine."""

from pathlib import Path

from embargo.daemon.supervise import premises


def test_each_failed_start_in_a_row_is_told_later_than_the_one_before(tmp_path: Path) -> None:
    pauses = [premises.pause(str(tmp_path)) for _ in range(200)]
    assert pauses[:5] == [0.0, 0.2, 0.4, 0.8, 1.6]
    assert pauses[-1] == 10.0
    premises.succeeded(str(tmp_path))
    premises.succeeded(str(tmp_path))
    assert premises.pause(str(tmp_path)) == 0.0, "the first one in a row again"


def test_where_nothing_can_be_noted_nothing_is_waited_for(tmp_path: Path) -> None:
    (tmp_path / "failed-starts").write_text("many")
    assert premises.pause(str(tmp_path)) == 0.0
    assert [premises.pause(str(tmp_path / "none")) for _ in range(3)] == [0.0] * 3
