"""The delay after failed starts."""

from pathlib import Path

from embargo.daemon.supervise import premises


def test_the_delay_doubles_with_each_failed_start_in_a_row(tmp_path: Path) -> None:
    delays = [premises.backoff(str(tmp_path)) for _ in range(200)]
    assert delays[:5] == [0.0, 0.2, 0.4, 0.8, 1.6]
    assert delays[-1] == 10.0
    premises.reset_backoff(str(tmp_path))
    premises.reset_backoff(str(tmp_path))
    assert premises.backoff(str(tmp_path)) == 0.0, "the first one in a row"


def test_there_is_no_delay_if_failures_cannot_be_counted(tmp_path: Path) -> None:
    (tmp_path / "failed-starts").write_text("many")
    assert premises.backoff(str(tmp_path)) == 0.0
    assert [premises.backoff(str(tmp_path / "none")) for _ in range(3)] == [0.0] * 3
