"""Questions that failed, remembered for a moment by name, type and server (RFC 9520).

A server that could not help with a question is not asked the same again for a second, and for up to five when that goes on.
Where all servers failed, clients get SERVFAIL at once meanwhile, and the agent's own refreshing asks nothing. Time comes in as
`now`, seconds of a monotonic clock.
"""

from collections.abc import Collection
from typing import NamedTuple

from embargo import names
from embargo.dns.message import Explanation
from embargo.dns.upstream import Server
from embargo.names import Name

FIRST = 1.0  # seconds, at least (RFC 9520 section 3.2)
LONGEST = 5.0  # seconds; that section allows 300, but a name that can be resolved again should be, soon
GOES_ON = 30.0  # seconds after the end of a failure in which the next one is its continuation
MAX_QUESTIONS = 4096  # of which the oldest is forgotten first; some 3 MiB


class Trouble(NamedTuple):
    """Why a question failed, for the EDE of a SERVFAIL."""

    code: int  # of RFC 8914
    text: str


class Failure(NamedTuple):
    """A question that some servers could not answer."""

    servers: frozenset[Server]
    until: float
    seconds: float  # for which it is remembered
    why: Trouble | Explanation


class Failures:
    """The failures of a worker, by `message.Query.key`."""

    def __init__(self) -> None:
        self._failures: dict[bytes, Failure] = {}  # in the order in which they happened

    def __len__(self) -> int:
        return len(self._failures)

    def current(self, key: bytes, now: float) -> Failure | None:
        """The failure of a question that is still remembered."""
        failure = self._failures.get(key)
        return failure if failure is not None and now < failure.until else None

    def note(self, key: bytes, servers: Collection[Server], why: Trouble | Explanation, now: float) -> None:
        """Remember that these servers could not help with a question."""
        known = self._failures.pop(key, None)
        seconds = FIRST
        if known is not None and now < known.until + GOES_ON:
            seconds = min(2 * known.seconds, LONGEST)
        if len(self._failures) >= MAX_QUESTIONS:
            del self._failures[next(iter(self._failures))]
        self._failures[key] = Failure(frozenset(servers), now + seconds, seconds, why)

    def answered(self, key: bytes, server: Server) -> None:
        """This server could help with a question."""
        failure = self._failures.get(key)
        if failure is None or server not in failure.servers:
            return
        if others := failure.servers - {server}:
            self._failures[key] = failure._replace(servers=others)
        else:
            del self._failures[key]

    def flush(self, name: Name) -> None:
        """Forget the failures of a name and all names below it."""
        for key in [key for key in self._failures if names.is_below(key[:-3], name)]:
            del self._failures[key]

    def clear(self) -> None:
        """Forget all failures."""
        self._failures.clear()
