"""What is left of the counts when a child or its supervisor is gone."""

import os
from pathlib import Path

import pytest

from embargo.daemon.process.outbox import MAX_MISSING, Account, Ledger


def test_what_was_noted_and_never_written_is_missing_also_to_the_next_supervisor(tmp_path: Path) -> None:
    account = Account(f"{tmp_path}/resolver-0")
    ledger = Ledger(account.page)
    ledger.write(12)
    account.wrote(7)
    ledger.noted[0] += 1
    assert account.missing() == 6
    account.close()
    assert Account.unwritten(str(tmp_path)) == 6
    assert Account.unwritten(str(tmp_path)) == 0, "asked once"
    assert not list(tmp_path.iterdir())


def test_a_new_page_begins_at_nothing(tmp_path: Path) -> None:
    for _ in range(2):
        account = Account(f"{tmp_path}/resolver-0")
        assert account.missing() == 0
        Ledger(account.page).write(3)
        account.wrote(2)
        account.close()
    assert Account.unwritten(str(tmp_path)) == 1


@pytest.mark.parametrize("length", [0, 7])
@pytest.mark.parametrize("name", ["resolver-0", "resolver-0.written"])
def test_what_is_cut_short_tells_nothing(tmp_path: Path, name: str, length: int) -> None:
    account = Account(f"{tmp_path}/resolver-0")
    Ledger(account.page).write(12)
    os.truncate(tmp_path / name, length)
    assert account.missing() == (12 if name.endswith(".written") else 0), "the account of one that runs is in memory too"
    account.close()
    assert Account.unwritten(str(tmp_path)) == 0


def test_a_page_is_believed_within_bounds(tmp_path: Path) -> None:
    account = Account(f"{tmp_path}/resolver-0")
    Ledger(account.page).write((1 << 64) - 1)
    assert account.missing() == MAX_MISSING
    account.close()
    assert Account.unwritten(str(tmp_path)) == MAX_MISSING


def test_where_no_file_can_be_had_it_counts_in_memory() -> None:
    account = Account("/nowhere/resolver-0")
    Ledger(account.page).write(3)
    account.wrote(1)
    assert account.missing() == 2
    account.close()
