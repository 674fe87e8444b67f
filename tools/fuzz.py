"""python -m tools.fuzz [--seconds N] [--seed N] — the compiled modules, built with sanitizers, on input that nobody means.

The package is built once more, with every index checked (`tools.checked`), AddressSanitizer and UndefinedBehaviorSanitizer,
into a directory of its own. There compiled functions and their originals in Python get the same mutated lists, images and
packets: a difference, a read outside a buffer, an overflow, each ends the run with the seed that shows it again.
"""

import argparse
import contextlib
import os
import random
import socket
import subprocess
import sys
import tempfile
import time
from array import array
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar

from tools import checked

TOP = Path(__file__).parent.parent
FLAGS = "-fsanitize=address,undefined -fno-sanitize-recover=all -fno-omit-frame-pointer -O1 -g"
INSIDE = "EMBARGO_FUZZ"  # set for the process that has the sanitized modules


def outside(given: argparse.Namespace) -> int:
    with tempfile.TemporaryDirectory(prefix="embargo-fuzz-") as directory:
        built = checked.build(Path(directory), compiler=FLAGS, linker=FLAGS)
        if not all(b"__asan_init" in path.read_bytes() for path in built):
            raise SystemExit("the compiled modules were built without sanitizers")
        library = subprocess.run(
            ["gcc", "-print-file-name=libasan.so"], capture_output=True, text=True, check=True
        ).stdout.strip()
        environment = {
            **os.environ, INSIDE: directory, "LD_PRELOAD": library, "PYTHONPATH": f"{directory}:{TOP}",
            "PYTHONMALLOC": "malloc", "EMBARGO_ACCELERATOR": "native",
            "ASAN_OPTIONS": "detect_leaks=0:abort_on_error=1", "UBSAN_OPTIONS": "print_stacktrace=1",
        }  # fmt: skip
        return subprocess.call([sys.executable, "-m", "tools.fuzz", *sys.argv[1:]], env=environment, cwd=TOP)


# ── what is done to them ─────────────────────────────────────────────────────────────────────────────────────────────────


def mutated(draw: random.Random, data: bytes) -> bytes:
    """Octets changed, taken out, doubled, cut off."""
    changed = bytearray(data)
    for _ in range(draw.choice((0, 1, 1, 2, 5, 20))):
        if not changed:
            break
        at = draw.randrange(len(changed))
        kind = draw.randrange(5)
        if kind == 0:
            changed[at] = draw.randrange(256)
        elif kind == 1:
            changed[at] = draw.choice((0, 1, 63, 64, 127, 128, 192, 255))
        elif kind == 2:
            del changed[at : at + draw.randrange(1, 9)]
        elif kind == 3:
            changed[at:at] = changed[at : at + draw.randrange(1, 70)]
        else:
            del changed[at:]
    return bytes(changed)


LINES = (
    b"alipay.example", b"=pay.alipay.example", b"!mail.alipay.example", b"203.0.113.0/24", b"# nothing", b"", b" x.test # seen",
    b"a" * 63 + b".test", b".".join([b"a"] * 126), b"UPPER.test", b"x\\046y.test", b"\xc3\xa9.test", b"wechat.test", b"com",
)  # fmt: skip


def fuzz(draw: random.Random, run: Callable[[], None]) -> None:
    from embargo.dns import fastpath
    from embargo.dns.acl import Acl
    from embargo.dns.cache import Cache
    from embargo.dns.judgement import BlockMode, Rules
    from embargo.dns.message import Answer
    from embargo.errors import ListError
    from embargo.lists import columns, image, lists, policy
    from embargo.lists.lists import Guard
    from embargo.lists.policy import App, Level, Selection, Source
    from embargo.names import Name
    from embargo.native import fastpath as native
    from embargo.native.image import Finder

    assert Path(native.__file__).is_relative_to(os.environ[INSIDE])
    listening = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
    listening.bind(("::1", 0))
    client = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
    client.connect(listening.getsockname())
    client.setblocking(False)
    source = Source("a/core.list", Level.APPS, "a", "core", False)
    modes = (BlockMode("nxdomain", 10), BlockMode("null", 1, (bytes(4),), (bytes(16),)), BlockMode("refused", 1))

    def both(module: Any, function: Callable[..., Any], *arguments: object) -> Any:
        """The result of a function, which is the same when the twin of this module does no work in it."""
        compiled = function(*arguments)
        native, module._native = module._native, None
        try:
            assert function(*arguments) == compiled
        finally:
            module._native = native
        return compiled

    while True:
        run()
        text = mutated(draw, b"\n".join(draw.choices(LINES, k=draw.randrange(20))))
        suspects = draw.choice((None, frozenset({Name(b"\3com\0")})))
        both(lists, lists.scan, text, b"\n", suspects)
        try:
            found = lists.parse(text, file="a.list", source=source, guard=Guard())
        except ListError:
            continue
        apps = (App("a", "A", lists=(found,)),)
        combined = both(columns, policy.combine, apps, (), Selection(apps="all", functions="all"))
        data = both(image, image.encode, combined)
        built = image.Image(data)
        board = policy.select((App("a", "A"),), built.classes, Selection(apps="all", functions="all"))
        cache = Cache()
        rules = Rules(1, 1, Acl(["::1/128"]), built, board, draw.choice(modes))
        twin, original = native.Shortcut(rules, cache), fastpath.Shortcut(rules, cache)
        asked = [entry.name for entry in found.entries if entry.network is None] or [Name(b"\1a\0")]
        for _ in range(30):
            name = draw.choice(asked)
            question = draw.choice((b"", b"\3www")) + name + b"\0" + bytes([draw.choice((1, 28, 15, 65, 252))]) + b"\0\1"
            packet = b"\x12\x34\1\0\0\1\0\0\0\0\0" + draw.choice(
                (b"\0" + question, b"\1" + question + b"\0\0\x29\4\xd0" + bytes(6))
            )
            if draw.randrange(3) == 0:
                body = b"\xc0\x0c\0\1\0\1\0\0\0\x64\0\4\xc0\0\2\1"
                cache.put(name + b"\0\1\0", Answer(0, (1, 0, 0), body, ((6, 100),), 0, 100), 0.0, 1)
            packet = mutated(draw, packet)
            compiled, python = twin.answer(packet, "::1", 7.5), original.answer(packet, "::1", 7.5)
            assert (compiled and compiled.reply(packet[:2], 7.5)) == (python and python.reply(packet[:2])), packet
        # sections that are not what they should be: what comes out does not matter, what is read does
        slots, blob = built._slots.tobytes(), bytes(built._blob)
        _damage(draw, Finder, slots, blob, asked)
        _over_a_socket(draw, rules, cache, listening, client)


def _damage(draw: random.Random, finder: Any, slots: bytes, blob: bytes, asked: Sequence[bytes]) -> None:
    changed = bytearray(slots)
    for _ in range(draw.randrange(1, 30)):
        changed[draw.randrange(len(changed))] = draw.randrange(256)
    words, octets = memoryview(bytes(changed)).cast("I"), memoryview(blob[: draw.randrange(1, len(blob) + 2)] or b"\0")
    made = finder(words, octets, draw.choice((8, 1, len(words) // 4, 1 << 31)))
    for name in asked:
        made.find(name)


def _over_a_socket(draw: random.Random, rules: Any, cache: Any, listening: socket.socket, client: socket.socket) -> None:
    """From recvmmsg to sendmmsg, with an event log that nobody reads."""
    from embargo.daemon.resolve import intake
    from embargo.events import Folder, Way

    class Noted:
        """What `Attempts` is to an intake."""

        folder, tally, page, names = Folder(), array("Q", bytes(800)), memoryview(bytearray(8)).cast("Q"), True
        asked: ClassVar[dict[bytes, None]] = {}

        @staticmethod
        def counted(noted: int) -> None:
            assert noted > 0

        @classmethod
        def first(cls, client: str, key: bytes, other: bytes, members: Any, asked: bytes, now: float, wall: float) -> None:
            cls.folder.note(client, [Way(each, members) for each in (key, other, b"", b"")], now, wall)

    stand_in: Any = Noted
    took = intake.make(cache, stand_in)
    took.adopt(rules)
    listener = intake.Listener(listening)
    packet = b"\x12\x34\1\0\0\1\0\0\0\0\0\0\6alipay\7example\0\0\1\0\1"
    sent = 0
    for _ in range(draw.randrange(70)):
        client.send(mutated(draw, packet) or b"\0")
        sent += 1
    taken = 0
    while taken < sent:
        drained = took.drain(listener, 1.0, 1.0)
        assert drained.packets, "loopback loses nothing here"
        taken += drained.packets
        for each in drained.declined:
            each.peer.send(b"\0" * 12)
    for _ in range(sent):
        try:
            client.recv(4096)
        except BlockingIOError:
            break
    _over_a_connection(draw, took, packet)


def _over_a_connection(draw: random.Random, took: Any, packet: bytes) -> None:
    """Messages whose lengths are wrong too, in pieces of any size."""
    from embargo.daemon.resolve.stream import IN_FLIGHT, Connection, Group

    nobody: Any = None
    theirs, ours = socket.socketpair()
    with theirs, ours:
        theirs.setblocking(False)
        connection = Connection(nobody, ours, "::1", Group("::1"), 1.0)
        for _ in range(draw.randrange(20)):
            message = mutated(draw, packet) * draw.choice((1, 1, 1, 200, 1000))
            with contextlib.suppress(BlockingIOError):  # what it sent before is not taken yet
                theirs.send(mutated(draw, len(message[:65535]).to_bytes(2) + message) or b"\0")
            stirred = [connection]
            while stirred and connection.in_flight < IN_FLIGHT and not connection.lost:
                if connection.complete:
                    connection.next_query()
                stirred = []
                took.converse(connection, 1.0, 1.0, stirred)
                connection.unsent = b""


def _unraisable(raised: "sys.UnraisableHookArgs") -> None:
    """An index outside its array, in a compiled function that cannot raise."""
    sys.__unraisablehook__(raised)
    os.abort()


def main() -> int:
    known = argparse.ArgumentParser(prog="tools.fuzz", description=(__doc__ or "").partition("—")[2].partition("\n")[0].strip())
    known.add_argument("--seconds", type=float, default=20.0, help="how long (20)")
    known.add_argument("--seed", type=int, default=None, help="begin where another run ended")
    given = known.parse_args()
    if INSIDE not in os.environ:
        return outside(given)
    seed = given.seed if given.seed is not None else random.randrange(1 << 32)
    sys.unraisablehook = _unraisable
    draw, ends, runs = random.Random(seed), time.monotonic() + given.seconds, 0

    def run() -> None:
        nonlocal runs, seed
        if time.monotonic() > ends:
            raise StopIteration
        runs += 1
        seed = draw.randrange(1 << 32) if runs > 1 else seed
        draw.seed(seed)

    try:
        fuzz(draw, run)
    except StopIteration:
        print(f"{runs} runs")
        return 0
    except BaseException:
        print(f"--seed {seed} shows it again", file=sys.stderr)
        raise
    return 1


if __name__ == "__main__":
    sys.exit(main())
