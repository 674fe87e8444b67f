"""TLS to upstreams: authorities, certificates and sessions, and the protocol apart from the socket (RFC 7858, RFC 8310).

There is one profile, the strict one: TLS 1.2 or later, and a certificate that a trusted authority has signed for the name in
the configuration or, where that has none, for the address (RFC 9525). Otherwise the connection fails with the reason in
words, and no question is sent.
"""

import contextlib
import os
import socket
import ssl
from typing import NamedTuple

from embargo.daemon.host.authorities import reason
from embargo.dns.upstream import Server

PIECE = 65_536  # octets taken out of TLS at once
RESUME_SECONDS = 3600.0  # after a certificate was checked: until then sessions are resumed, which skips the check
PROBE_SECONDS = 3.0  # within which a server must show its certificate to `probe`

_UNTRUSTED = "has a certificate of an authority that is not trusted here"
#: OpenSSL's X509_V_ERR_*
_CERTIFICATES = {
    2: _UNTRUSTED, 9: "has a certificate that is not valid yet", 10: "has a certificate that has expired",
    18: "has a self-signed certificate", 19: _UNTRUSTED, 20: _UNTRUSTED, 21: _UNTRUSTED,
    23: "has a certificate that was revoked", 26: "has a certificate that is not for servers",
}  # fmt: skip
_OTHER_NAME = frozenset({62, 64})
_REASONS = {
    **dict.fromkeys(("TLSV1_ALERT_PROTOCOL_VERSION", "UNSUPPORTED_PROTOCOL"), "speaks no TLS 1.2 or later"),
    **dict.fromkeys(("WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE", "PACKET_LENGTH_TOO_LONG"), "does not speak TLS there"),
}


class _Session(NamedTuple):
    proven: float  # when the certificate was checked
    session: ssl.SSLSession


class Trust:
    """The trusted authorities: certificates in PEM or, if empty, those of the system as they are at the moment."""

    def __init__(self, authorities: str = "") -> None:
        self.authorities = authorities
        self._store: object = None
        self._context: ssl.SSLContext | None = None
        self._sessions: dict[Server, _Session] = {}

    def context(self) -> ssl.SSLContext:
        """The context of all connections, made anew when the authorities of the system have changed."""
        store = None if self.authorities else _store()
        if self._context is None or store != self._store:
            self._sessions.clear()
            self._store = store
            self._context = context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # which checks certificate and name
            context.hostname_checks_common_name = False  # a name stands among the subject's alternatives (RFC 9525 section 2)
            context.minimum_version = ssl.TLSVersion.TLSv1_2
            context.options |= ssl.OP_NO_RENEGOTIATION
            if self.authorities:
                with contextlib.suppress(ssl.SSLError):  # text without a certificate: nothing is trusted
                    context.load_verify_locations(cadata=self.authorities)
                context.verify_flags |= ssl.VerifyFlags.VERIFY_X509_PARTIAL_CHAIN  # an intermediate one, or the server's own
            else:
                context.set_default_verify_paths()
        return self._context

    def open(self, server: Server, now: float) -> "Layer":
        """TLS for a new connection to a server, which resumes the last session if that is young enough."""
        context = self.context()
        known = self._sessions.get(server)
        if known is not None and now >= known.proven + RESUME_SECONDS:
            known = None
        return Layer(context, server, known)

    def remember(self, server: Server, layer: "Layer") -> None:
        """The next connection may go on from this one's session."""
        session = layer.session
        if session is not None and layer.context is self._context:
            self._sessions[server] = _Session(layer.proven, session)


def _store() -> list[tuple[str, int]]:
    """Identifies the authorities of the system: paths with the times of their last change."""
    paths = ssl.get_default_verify_paths()
    found = []
    for path in filter(None, (paths.cafile, paths.capath)):
        with contextlib.suppress(OSError):
            found.append((path, os.stat(path).st_mtime_ns))
    return found


class Layer:
    """TLS of one connection: octets from the network in, octets for the network out. ssl.SSLError when it fails."""

    def __init__(self, context: ssl.SSLContext, server: Server, known: _Session | None = None) -> None:
        self.context = context
        self.ready = False  # the handshake is complete: the server has proven its name
        self.proven = known.proven if known else 0.0  # when its certificate was checked, here or where the session began
        self.ended = False  # the server has announced that nothing more comes
        self._in, self._out = ssl.MemoryBIO(), ssl.MemoryBIO()
        session = known.session if known else None
        self._tls = context.wrap_bio(self._in, self._out, server_hostname=_subject(server), session=session)

    @property
    def session(self) -> ssl.SSLSession | None:
        """The session, if it can be resumed."""
        session = self._tls.session
        return session if session is not None and session.has_ticket else None

    def take(self) -> bytes:
        """The octets to be sent, after an error too: TLS reports it to the server."""
        return self._out.read()

    def begin(self, now: float) -> None:
        """Begin the handshake."""
        self._shake(now)

    def received(self, data: bytes, now: float) -> bytes:
        """The octets in clear text, out of octets from the network. They may be none."""
        self._in.write(data)
        if not self.ready and not self._shake(now):
            return b""
        pieces = []
        with contextlib.suppress(ssl.SSLWantReadError):
            while piece := self._tls.read(PIECE):
                pieces.append(piece)
            self.ended = True
        return b"".join(pieces)

    def _shake(self, now: float) -> bool:
        try:
            self._tls.do_handshake()
        except ssl.SSLWantReadError:
            return False
        self.ready = True
        if not self._tls.session_reused:
            self.proven = now
        return True

    def send(self, data: bytes) -> None:
        """Encrypt octets; `take` has them."""
        self._tls.write(data)  # a BIO in memory takes everything

    def end(self) -> None:
        """Announce that nothing more comes."""
        with contextlib.suppress(ssl.SSLError):  # the server has not announced the same, which is not waited for
            self._tls.unwrap()


def _subject(server: Server) -> str:
    """The name or address that the certificate must be for."""
    return server.name or server.address.partition("%")[0]


def words(error: ssl.SSLError, server: Server) -> str:
    """What is wrong, with the server as the subject of the sentence: "has a certificate that has expired"."""
    if not isinstance(error, ssl.SSLCertVerificationError):
        return _REASONS.get(error.reason or "") or f"failed in TLS: {reason(error)}"
    if error.verify_code in _OTHER_NAME:
        return f"has no certificate for {_subject(server)}"
    return _CERTIFICATES.get(error.verify_code) or f"has a certificate that is refused: {error.verify_message}"


def probe(server: Server, authorities: str) -> str:
    """What is wrong with a server's certificate or TLS, in words; empty when nothing is, or when it cannot be reached."""
    context = Trust(authorities).context()
    with contextlib.suppress(OSError), socket.create_connection((server.address, server.port), PROBE_SECONDS) as sock:
        try:
            context.wrap_socket(sock, server_hostname=_subject(server)).close()
        except ssl.SSLError as error:
            return words(error, server)
    return ""
