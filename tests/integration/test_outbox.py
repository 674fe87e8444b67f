"""Attempts that were noted but not written are counted, also after the child or the supervisor has ended."""

import os
from pathlib import Path

import pytest

from embargo.daemon.process.outbox import MAX_MISSING, Account, Ledger


def test_attempts_noted_but_not_written_are_counted_by_the_next_supervisor_too(tmp_path: Path) -> None:
    account = Account(f"{tmp_path}/resolver-0")
    ledger = Ledger(account.page)
    ledger.write(12)
    account.add_written(7)
    ledger.noted[0] += 1
    assert account.missing() == 6
    account.close()
    assert Account.take_unwritten(str(tmp_path)) == 6
    assert Account.take_unwritten(str(tmp_path)) == 0, "the files are removed"
    assert not list(tmp_path.iterdir())


def test_a_new_page_starts_at_zero(tmp_path: Path) -> None:
    for _ in range(2):
        account = Account(f"{tmp_path}/resolver-0")
        assert account.missing() == 0
        Ledger(account.page).write(3)
        account.add_written(2)
        account.close()
    assert Account.take_unwritten(str(tmp_path)) == 1


@pytest.mark.parametrize("length", [0, 7])
@pytest.mark.parametrize("name", ["resolver-0", "resolver-0.written"])
def test_a_truncated_count_is_taken_for_zero(tmp_path: Path, name: str, length: int) -> None:
    account = Account(f"{tmp_path}/resolver-0")
    Ledger(account.page).write(12)
    os.truncate(tmp_path / name, length)
    assert account.missing() == (12 if name.endswith(".written") else 0), "the account of a running supervisor is in memory too"
    account.close()
    assert Account.take_unwritten(str(tmp_path)) == 0


def test_a_count_beyond_its_limit_is_cut_to_it(tmp_path: Path) -> None:
    account = Account(f"{tmp_path}/resolver-0")
    Ledger(account.page).write((1 << 64) - 1)
    assert account.missing() == MAX_MISSING
    account.close()
    assert Account.take_unwritten(str(tmp_path)) == MAX_MISSING


def test_without_a_file_attempts_are_counted_in_memory() -> None:
    account = Account("/nowhere/resolver-0")
    Ledger(account.page).write(3)
    account.add_written(1)
    assert account.missing() == 2
    account.close()
