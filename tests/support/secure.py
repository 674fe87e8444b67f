"""DNS over TLS for tests: a throw-away authority (openssl), a server that does what a script says, and Debian's Unbound."""

import socket
import ssl
import subprocess
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

import dns.edns
import dns.message
import dns.rcode

from embargo.daemon.host.authorities import certificates
from support.playbook import query
from support.upstream import Asked, right
from support.worker import Worker, framed

NAME = "resolver.example"
REFUSED = 23  # EDE: network error
SILENT = 22  # EDE: no reachable authority


class Pair:
    """A certificate and its key, as files."""

    def __init__(self, directory: Path, name: str) -> None:
        self.certificate, self.key = directory / f"{name}.pem", directory / f"{name}.key"

    @property
    def text(self) -> str:
        """As the agent hands it to its workers."""
        return certificates(self.certificate.read_text())


def _openssl(*words: str | Path) -> None:
    subprocess.run(["openssl", *words], check=True, capture_output=True, timeout=30)


_KEY = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")


def self_signed(directory: Path, name: str, subject: str = "a test's authority", alternative: str = "") -> Pair:
    pair = Pair(directory, name)
    extension = ("-addext", f"subjectAltName={alternative}") if alternative else ()
    _openssl("req", "-x509", *_KEY, "-keyout", pair.key, "-subj", f"/CN={subject}", "-days", "2", *extension, "-out",
             pair.certificate)  # fmt: skip
    return pair


class Authority:
    def __init__(self, directory: Path, name: str = "authority") -> None:
        self._directory = directory
        self.own = self_signed(directory, name)

    def sign(self, name: str, alternative: str = f"DNS:{NAME}", days: int = 2, subject: str = "server") -> Pair:
        """A server's certificate; of less than no days: it has expired."""
        pair, request, extensions = Pair(self._directory, name), self._directory / "request", self._directory / "extensions"
        names = f"subjectAltName={alternative}\n" if alternative else ""
        extensions.write_text(f"{names}extendedKeyUsage=serverAuth\n")
        _openssl("req", "-new", *_KEY, "-keyout", pair.key, "-subj", f"/CN={subject}", "-out", request)
        _openssl("x509", "-req", "-in", request, "-CA", self.own.certificate, "-CAkey", self.own.key, "-CAcreateserial",
                 "-days", str(days), "-extfile", extensions, "-out", pair.certificate)  # fmt: skip
        return pair


def context(pair: Pair) -> ssl.SSLContext:
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    made.load_cert_chain(pair.certificate, pair.key)
    return made


class Talk:
    """One connection to a Secure."""

    def __init__(self, server: "Secure", sock: socket.socket, number: int) -> None:
        self._server = server
        self._sock = sock
        self._file = sock.makefile("rb")
        self.number = number

    def hear(self) -> Asked | None:
        """The next question; None when there is no more."""
        head = self._file.read(2)
        if len(head) < 2:
            return None
        wire = self._file.read(int.from_bytes(head))
        address, port = self._sock.getpeername()[:2]
        asked = Asked(dns.message.from_wire(wire), wire, port, tcp=True, address=address)
        self._server.asked.append(asked)
        return asked

    def records(self) -> Iterator[list[Asked]]:
        """The questions of each TLS record, as long as some come."""
        while octets := self._sock.recv(1 << 16):  # OpenSSL reads one record at a time
            asked = []
            while octets:
                size = int.from_bytes(octets[:2])
                wire, octets = octets[2 : 2 + size], octets[2 + size :]
                asked.append(Asked(dns.message.from_wire(wire), wire, self._sock.getpeername()[1], tcp=True))
            self._server.asked += asked
            yield asked

    def say(self, *wires: bytes) -> None:
        self._sock.sendall(b"".join(map(framed, wires)))


def faithful(talk: Talk) -> None:
    """A good server."""
    while (asked := talk.hear()) is not None:
        talk.say(right(asked))


def once(talk: Talk) -> None:
    """One answer, and the connection is closed while nothing is awaited."""
    asked = talk.hear()
    assert asked is not None
    talk.say(right(asked))


class Secure:
    """`script` has one connection after its handshake, which `before` may hold up; what it leaves is closed. Without a context
    it speaks TCP alone."""

    def __init__(
        self,
        made: ssl.SSLContext | None,
        script: Callable[[Talk], None] = faithful,
        *,
        before: Callable[[], object] = lambda: None,
        port: int = 0,
        address: str = "127.0.0.1",
    ) -> None:
        self._context = made
        self._script = script
        self._before = before
        self._listener = socket.create_server((address, port), backlog=512)
        self.port = int(self._listener.getsockname()[1])
        self.asked: list[Asked] = []
        self.resumed: list[bool] = []  # each connection that was made
        self.names: list[str | None] = []  # that were asked for (SNI)
        self.tried = 0
        self._open: list[socket.socket] = []
        if made is not None:
            made.sni_callback = lambda _, name, __: self.names.append(name)
        self._threads = [threading.Thread(target=self._serve, daemon=True)]

    def __enter__(self) -> Self:
        self._threads[0].start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for sock in (self._listener, *self._open):
            with suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
        for thread in list(self._threads):
            thread.join(10)
        self._listener.close()

    def _serve(self) -> None:
        with suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                self.tried += 1
                self._open.append(connection)
                thread = threading.Thread(target=self._converse, args=[connection], daemon=True)
                self._threads.append(thread)
                thread.start()

    def _converse(self, connection: socket.socket) -> None:
        with connection, suppress(OSError):
            self._before()
            if self._context is None:
                self.resumed.append(False)
                self._script(Talk(self, connection, len(self.resumed)))
                return
            with self._context.wrap_socket(connection, server_side=True) as sock:
                self._open.append(sock)
                self.resumed.append(bool(sock.session_reused))
                self._script(Talk(self, sock, len(self.resumed)))


class Unbound:
    """Debian's Unbound, which knows the records of its zone `test.` and answers over TLS on one port, in clear on none."""

    def __init__(self, directory: Path, pair: Pair, port: int, records: Sequence[str], prefix: Sequence[str] = ()) -> None:
        config = directory / "unbound.conf"
        data = "".join(f"  local-data: '{record}'\n" for record in records)
        config.write_text(f"""\
server:
  interface: 0.0.0.0@{port}
  tls-port: {port}
  tls-service-key: "{pair.key}"
  tls-service-pem: "{pair.certificate}"
  access-control: 0.0.0.0/0 allow
  num-threads: 1
  module-config: "iterator"
  username: ""
  chroot: ""
  directory: "{directory}"
  pidfile: ""
  use-syslog: no
  do-udp: no
  local-zone: "test." redirect
  local-data: "test. 300 IN A 192.0.2.80"
  local-zone: "zone.test." static
{data}""")
        self.port = port
        self._command = [*prefix, "unbound", "-d", "-c", str(config)]
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(self._command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        assert self._process is not None
        self._process.terminate()
        self._process.wait(20)


def refused(worker: Worker, name: str = "free.test") -> tuple[int, str]:
    """Code and text of the extended error (EDE) of a SERVFAIL, which must come in 5 s, as a usual stub waits."""
    with worker.udp() as sock:
        sock.settimeout(5.0)
        sock.send(query(name))
        found = dns.message.from_wire(sock.recv(4096))
    return extended(found)


def extended(found: dns.message.Message) -> tuple[int, str]:
    """Code and text of the extended error (EDE) of a SERVFAIL."""
    assert found.rcode() == dns.rcode.SERVFAIL, found
    (option,) = [each for each in found.options if isinstance(each, dns.edns.EDEOption)]
    return int(option.code), str(option.text)


def row(worker: Worker) -> dict[str, object]:
    """The statistics of the only upstream."""
    (found,) = worker.stats()["upstreams"]
    return dict(found)


def not_ours(directory: Path) -> Pair:
    """The certificate of a server, signed by an authority that the agent does not trust."""
    return Authority(directory, "stranger").sign("stranger-server")
