"""Messages to systemd's journal: real datagrams, to a socket of the test."""

import logging
import re
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from embargo import events
from embargo.daemon.log.journald import MAX_FIELD, JournalHandler, fields


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(str(tmp_path / "socket"))
        sock.settimeout(5)
        yield sock


@pytest.fixture
def log(journal: socket.socket) -> Iterator[logging.Logger]:
    found = logging.Logger("embargo.test", logging.INFO)
    handler = JournalHandler(journal.getsockname())
    found.addHandler(handler)
    yield found
    handler.close()


def test_a_message_has_its_priority_and_an_event_its_members(journal: socket.socket, log: logging.Logger) -> None:
    log.warning("one %s", "two", extra={"event": {"event": "reload", "ok": True}})
    assert journal.recv(65536).splitlines() == [
        b"MESSAGE=one two", b"PRIORITY=4", b"SYSLOG_IDENTIFIER=embargo", b"EMBARGO_MODULE=embargo.test",
        b"EMBARGO_EVENT=reload", b"EMBARGO_OK=True",
    ]  # fmt: skip


def test_a_field_of_several_lines_cannot_forge_another_field(journal: socket.socket, log: logging.Logger) -> None:
    log.error("x\nPRIORITY=7")
    assert journal.recv(65536).startswith(b"MESSAGE\n" + (12).to_bytes(8, "little") + b"x\nPRIORITY=7\nPRIORITY=3\n")


def test_a_long_message_is_cut_and_one_that_cannot_be_sent_is_printed(
    journal: socket.socket, log: logging.Logger, capsys: pytest.CaptureFixture[str]
) -> None:
    log.info("y" * 10 * MAX_FIELD)
    assert journal.recv(1 << 20).split(b"\n")[0] == b"MESSAGE=" + b"y" * MAX_FIELD
    journal.close()
    log.info("nobody reads")
    assert capsys.readouterr().err == "nobody reads\n"


@pytest.mark.parametrize("key", sorted({field.key for field in events.FIELDS}))
def test_every_key_of_an_event_makes_a_field_of_the_journal(key: str) -> None:
    """The journal drops a field with another name (systemd.journal-fields(7))."""
    record = logging.makeLogRecord({"event": {key: "value"}})
    name = fields(record, "").splitlines()[-1].partition(b"=")[0].decode()
    assert re.fullmatch("EMBARGO_[A-Z0-9_]{1,56}", name)
