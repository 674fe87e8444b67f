"""Messages of a hostile process: each is refused, and none of its descriptors stays open."""

import array
import contextlib
import fcntl
import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from embargo.daemon.guard.orders import Stop
from embargo.daemon.process import channel
from embargo.daemon.process.channel import MAX_MESSAGE, Answered, Channel, ChannelError, Events, Failed
from support import hostile
from tools.rig import until

SEALS = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW


@pytest.fixture
def ends() -> Iterator[tuple[Channel, socket.socket]]:
    """A channel, and the socket of its other end. Afterwards no additional descriptor may be open."""
    before = len(list(Path("/proc/self/fd").iterdir()))
    sock, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours = Channel(sock, (Stop, Answered, Events), takes=True)
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
        b"E", b"E" + bytes(15), b"+" + b"{", b"=" + b'{"op":"Stop","rules":"keep"}',
        b'{"a":"' + b"a" * channel.MAX_PACKET + b'"}',
    ],
    ids=lambda data: str(data[:12]),
)  # fmt: skip
def test_an_invalid_message_leaves_no_descriptor_open(ends: tuple[Channel, socket.socket], data: bytes) -> None:
    ours, theirs = ends
    send(theirs, data, *[theirs.fileno()] * channel.MAX_FDS)
    with pytest.raises(ChannelError):
        ours.receive()


# ── what comes from a process with less power ────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def worker() -> Iterator[tuple[Channel, socket.socket]]:
    """The supervisor's end of a channel, and the socket of a worker."""
    ours, theirs = channel.pair((Stop, Answered, Events))
    ours.setblocking(False)
    yield ours, theirs
    ours.close()
    theirs.close()


@pytest.mark.parametrize("passes", [True, False], ids=["kernel of before 6.16", "this kernel"])
def test_no_descriptor_of_a_worker_is_taken_and_none_holds_the_supervisor(
    worker: tuple[Channel, socket.socket], passes: bool
) -> None:
    ours, theirs = worker
    if passes:
        with contextlib.suppress(OSError):
            ours._sock.setsockopt(socket.SOL_SOCKET, channel._SO_PASSRIGHTS, 1)
    others = []
    for packet in (b"{}", b"@", b"A", b'{"op":"Stop","rules":"keep"}'):
        try:
            others.append(hostile.send_lingering(theirs, packet))
        except OSError:
            assert not passes, "the kernel refuses it"
            continue
        with pytest.raises(ChannelError, match="descriptors, which this process does not take"):
            ours.receive(channel.MAX_ANSWER)
    theirs.send(b'{"op":"Stop","rules":"keep"}')
    assert ours.receive() == (Stop("keep"), None, [])
    until(lambda: not closing(), "the threads that close them have ended: what lingers is switched off")
    for other in others:
        other.close()


def closing() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread is not threading.main_thread() and thread.daemon]


@pytest.mark.parametrize("size", [10, channel.MAX_PACKET, 3 * channel.MAX_PACKET, 1 << 20])
def test_a_large_answer_comes_in_pieces(size: int) -> None:
    sock, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours, child = Channel(sock, (Failed,)), Channel(theirs, takes=True)
    answer = Failed("x" * (size - 60))
    sending = threading.Thread(target=child.send, args=(answer, (), 7))
    sending.start()
    assert ours.receive(channel.MAX_ANSWER) == (answer, 7, [])
    sending.join()
    ours.close()
    child.close()


FULL = b"+" + b"[" * (channel.MAX_PACKET - 1)


@pytest.mark.parametrize(
    "packets",
    [
        [FULL] * 11, [FULL, b"{}"], [FULL, b"@"], [FULL, b"A"], [b"=", b"="], [FULL] * 3 + [b"=["],
        [b"+"], [b"+["], [FULL, FULL[:-1]],  # very many small pieces would hold the receiver
    ],
    ids=lambda packets: str(packets[-1][:2]),
)  # fmt: skip
def test_pieces_that_are_no_record_are_refused(worker: tuple[Channel, socket.socket], packets: list[bytes]) -> None:
    ours, theirs = worker

    def send_all() -> None:
        with contextlib.suppress(OSError):
            for packet in packets:
                theirs.send(packet)

    sending = threading.Thread(target=send_all)
    sending.start()

    def refused() -> bool:
        try:
            assert ours.receive(channel.MAX_ANSWER) is None
        except BlockingIOError:
            return False
        except ChannelError:
            return True
        raise AssertionError("it was taken")

    until(refused, "it is refused")
    ours.close()
    sending.join()


def test_a_child_that_does_not_finish_a_record_is_not_waited_for(worker: tuple[Channel, socket.socket]) -> None:
    ours, theirs = worker
    theirs.send(b'+{"op":"Stop",'.ljust(channel.MAX_PACKET))
    for _ in range(3):
        with pytest.raises(BlockingIOError):
            ours.receive(channel.MAX_ANSWER)
    theirs.send(b'="rules":"keep"}')
    assert ours.receive(channel.MAX_ANSWER) == (Stop("keep"), None, [])


def test_closing_waits_for_nothing_that_the_sender_has_left_there() -> None:
    """Packets that were not read may hold a socket whose close takes as long as its owner likes (SO_LINGER)."""
    held = threading.Event()

    class Slow(socket.socket):
        def close(self) -> None:
            assert held.wait(20)
            super().close()

    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    slow = Slow(fileno=ours.detach())
    Channel(slow).close()
    assert slow.fileno() >= 0, "a thread closes it"
    held.set()
    assert theirs.recv(1) == b""
    theirs.close()
    until(lambda: slow.fileno() < 0, "it is closed")
