"""Answers that this program makes itself, record by record: block replies, local records, special names, negative answers.

dnslib packs the records. Each function returns an `Answer`, the octets behind any question: the owner of every record is a
pointer to the qname, and all other names are whole, because a pointer to one of them would depend on the length of the
question. So an answer is composed once, when a policy or a setting is adopted or when a local record is first asked for,
and sent behind as many questions as ask for it. Nothing here runs for a query that is blocked, cached or forwarded.

Names go to dnslib as tuples of labels, never as text: as text it would split a label at a dot inside it and encode octets
beyond ASCII by IDNA. It does not fold case and compresses only equal case, which does not matter here (see `_Body`).
Nothing is read with it: it refuses labels that are not UTF-8, which an upstream may send. A response that loses records is
therefore written anew in `response`.
"""

from collections.abc import Iterable
from typing import Any

import dnslib  # type: ignore[import-untyped] # ships no types

from embargo import names
from embargo.dns import message
from embargo.dns.message import Answer
from embargo.names import Name

#: names of the SOA record in negative answers; names below `invalid` never exist (RFC 6761 section 6.4)
_MNAME, _RNAME = names.from_text("blocked.invalid"), names.from_text("hostmaster.invalid")
#: serial, refresh, retry, expire of that record: no secondary server ever reads them
_SOA_TIMES = (1, 3600, 600, 86400)
_QNAME = dnslib.DNSLabel(())
_POINTER_TO_QNAME = b"\xc0\x0c"  # the question begins behind the 12 octets of the header (RFC 1035 section 4.1.4)


class _Body(dnslib.DNSBuffer):  # type: ignore[misc] # dnslib ships no types
    """Packs records without compression, but for the qname, which is always at the same place."""

    def encode_name(self, name: Any) -> None:
        if name is _QNAME:
            self.append(_POINTER_TO_QNAME)
        else:
            self.encode_name_nocompress(name)


def negative(rcode: int, ttl: int) -> Answer:
    """NXDOMAIN or NODATA, with the SOA record by which it is cached for `ttl` seconds (RFC 2308 section 3)."""
    soa = dnslib.SOA(_label(_MNAME), _label(_RNAME), (*_SOA_TIMES, ttl))
    return Answer(rcode, (0, 1, 0), _packed([(message.SOA, soa)], ttl))


def addresses(packed: Iterable[bytes], ttl: int) -> Answer:
    """A and AAAA records of the qname for addresses of 4 and 16 octets in network order, each with `ttl` seconds."""
    records = [
        (message.A, dnslib.A(tuple(address))) if len(address) == 4 else (message.AAAA, dnslib.AAAA(tuple(address)))
        for address in packed
    ]
    return Answer(message.NOERROR, (len(records), 0, 0), _packed(records, ttl))


def pointer(target: Name, ttl: int) -> Answer:
    """The PTR record that leads from the qname, a reverse name, to `target`."""
    return Answer(message.NOERROR, (1, 0, 0), _packed([(message.PTR, dnslib.PTR(_label(target)))], ttl))


def _label(name: Name) -> Any:
    return dnslib.DNSLabel(tuple(names.labels(name)))


def _packed(records: Iterable[tuple[int, Any]], ttl: int) -> bytes:
    """The octets of records (type, rdata) of the qname."""
    body = _Body()
    for rtype, rdata in records:
        dnslib.RR(_QNAME, rtype, message.IN, ttl, rdata).pack(body)
    return bytes(body.data)
