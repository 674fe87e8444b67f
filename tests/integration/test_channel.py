"""Messages of a hostile process: each is refused, and none of its descriptors stays open."""

import array
import contextlib
import fcntl
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from embargo.daemon.guard.orders import Stop
from embargo.daemon.process import channel
from embargo.daemon.process.channel import MAX_MESSAGE, Answered, Channel, ChannelError, Events

SEALS = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW


@pytest.fixture
def ends() -> Iterator[tuple[Channel, socket.socket]]:
    """A channel, and the socket of its other end. Afterwards no additional descriptor may be open."""
    before = len(list(Path("/proc/self/fd").iterdir()))
    ours, theirs = channel.pair((Stop, Answered, Events))
    yield ours, theirs
    ours.close()
    theirs.close()
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def send(sock: socket.socket, data: bytes, *fds: int) -> None:
    sock.sendmsg([data], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))])


@contextlib.contextmanager
def memory(data: bytes, seals: int) -> Iterator[int]:
    fd = os.memfd_create("test", os.MFD_ALLOW_SEALING)
    os.write(fd, data)
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, seals)
    yield fd
    os.close(fd)


def test_a_descriptor_that_is_no_sealed_file_is_not_read(ends: tuple[Channel, socket.socket]) -> None:
    ours, theirs = ends
    waiting = os.eventfd(0)
    reading, writing = os.pipe()
    for fd in (waiting, reading, writing):
        send(theirs, b"@", fd)
        with pytest.raises(ChannelError, match="not sealed"):
            ours.receive(MAX_MESSAGE)
        os.close(fd)


@pytest.mark.parametrize("seals", [0, SEALS & ~fcntl.F_SEAL_WRITE, SEALS & ~fcntl.F_SEAL_SHRINK, SEALS & ~fcntl.F_SEAL_GROW])
def test_a_message_that_can_change_is_refused(ends: tuple[Channel, socket.socket], seals: int) -> None:
    ours, theirs = ends
    with memory(b'{"op":"Stop","rules":"keep"}', seals) as fd:
        send(theirs, b"@", fd)
    with pytest.raises(ChannelError, match="not sealed"):
        ours.receive(MAX_MESSAGE)


def test_a_message_in_memory_is_read_up_to_its_limit(ends: tuple[Channel, socket.socket]) -> None:
    ours, theirs = ends
    for limit, passes in ((28, True), (27, False), (0, False)):
        with memory(b'{"op":"Stop","rules":"keep"}', SEALS) as fd:
            send(theirs, b"@", fd)
        if passes:
            assert ours.receive(limit) == (Stop("keep"), None, [])
        else:
            with pytest.raises(ChannelError):
                ours.receive(limit)


@pytest.mark.parametrize(
    "data",
    [
        b"[" * 100_000, b"[]", b"7", b"{", b"\xff", b"@", b'{"op":"Events","lines":"","lost":0,"attempts":0}',
        b'{"op":"Answered","records":"00"}',
        b'{"op":"Use"}', b'{"op":"Stop"}', b'{"op":"Stop","rules":"none"}',
        b'{"op":"Stop","rules":"keep","id":"x"}',
        b'{"op":"Stop","rules":"keep","more":1}', b'{"op":["Stop"]}',
        b"E" + (2).to_bytes(8) + (1).to_bytes(8), b"E" + bytes([255]) * 16, b"E" + bytes(16) + b"half a line",
        b'{"a":"' + b"a" * channel.MAX_PACKET + b'"}',
    ],
    ids=lambda data: str(data[:12]),
)  # fmt: skip
def test_an_invalid_message_leaves_no_descriptor_open(ends: tuple[Channel, socket.socket], data: bytes) -> None:
    ours, theirs = ends
    send(theirs, data, *[theirs.fileno()] * channel.MAX_FDS)
    with pytest.raises(ChannelError):
        ours.receive()
