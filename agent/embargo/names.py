"""Domain names as lower-case wire bytes.

A `Name` is the wire form of RFC 1035 section 3.1, uncompressed, ASCII letters folded (RFC 4343), the root's zero octet
included. Labels may hold any octet, so text exists only in lists, logs and messages to people. Suffixes are slices,
comparison is `==`, and C sees the same key as Python.
"""

from collections.abc import Iterator
from typing import NewType

from embargo.errors import MessageError

Name = NewType("Name", bytes)

ROOT = Name(b"\0")
MAX_NAME = 255  # RFC 1035 section 2.3.4, octets with the root's
MAX_LABEL = 63
FORMERR = 1  # as in `dns.message`, which imports this module

_PLAIN = b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_*/"
#: maps octets that need no escape to themselves, the length octet of a usual label to the dot before it, all others to zero
_DOTTED = bytes(octet if octet in _PLAIN else 0x2E if 0 < octet < 32 else 0 for octet in range(256))
# IDEOGRAPHIC FULL STOP, FULLWIDTH FULL STOP, HALFWIDTH IDEOGRAPHIC FULL STOP separate labels too (UTS 46 section 2.3)
_DOTS = str.maketrans({"\u3002": ".", "\uff0e": ".", "\uff61": "."})


def from_text(text: str) -> Name:
    """A name from presentation format: escapes of RFC 1035 section 5.1, U-labels by UTS 46. ValueError says what is wrong."""
    if "\\" not in text:
        text = text.translate(_DOTS)
    if text == ".":
        return ROOT
    labels = list(_labels(text))
    if len(labels) > 1 and not labels[-1]:
        labels.pop()  # the label of the root, behind the final dot
    wire = bytearray()
    for label in labels:
        if not label:
            raise ValueError("it has an empty label: one dot stands between two labels, none before the first")
        if len(label) > MAX_LABEL:
            raise ValueError(f"a label has {len(label)} octets, at most {MAX_LABEL} are allowed")
        wire.append(len(label))
        wire += label
    wire.append(0)
    if len(wire) > MAX_NAME:
        raise ValueError(f"it has {len(wire)} octets, at most {MAX_NAME} are allowed")
    return Name(bytes(wire).lower())


def _labels(text: str) -> Iterator[bytes]:
    """The labels of a name in presentation format, without a check of their lengths."""
    if "\\" not in text:
        for part in text.split("."):
            yield part.encode("ascii") if part.isascii() else _a_label(part)
        return
    label = bytearray()
    i = 0
    while i < len(text):
        char = text[i]
        if char == ".":
            yield bytes(label)
            label.clear()
        elif char == "\\":
            digits = text[i + 1 : i + 4]
            if len(digits) == 3 and digits.isascii() and digits.isdecimal():
                if int(digits) > 255:
                    raise ValueError(f"\\{digits} is not an octet")
                label.append(int(digits))
                i += 3
            elif digits[:1].isascii() and digits[:1].isdecimal():
                raise ValueError(f"\\{digits[0]} is not an escape: an octet is written with three digits")
            elif digits[:1].isascii() and digits:
                label.append(ord(digits[0]))
                i += 1
            else:
                raise ValueError("it ends in the middle of an escape")
        elif char.isascii():
            label.append(ord(char))
        else:
            raise ValueError("it mixes escapes and letters outside ASCII")
        i += 1
    yield bytes(label)


def _a_label(label: str) -> bytes:
    """The A-label of a U-label, by UTS 46."""
    import idna  # slow to load, and only lists with U-labels need it

    try:
        return idna.encode(label, uts46=True)
    except idna.IDNAError as error:
        raise ValueError(f"{label!r} is not a valid internationalised label ({error})") from None


def to_text(name: bytes) -> str:
    """Presentation format without the final dot ("." for the root). Unusual characters are escaped, for logs and lists."""
    if name == ROOT:
        return "."
    text = name[1:-1].translate(_DOTTED)  # nearly all names, at a third of the cost
    at = name[0]
    dots = 0
    while at < len(text) and text[at] == 0x2E:
        dots += 1
        at += 1 + name[1 + at]
    if at == len(text) and 0 not in text and text.count(b".") == dots:
        return text.decode()
    return ".".join("".join(map(_escape, label)) for label in labels(name))


def _escape(octet: int) -> str:
    if octet in _PLAIN:
        return chr(octet)
    return "\\" + chr(octet) if octet in b'.\\"();@$' else f"\\{octet:03d}"


def end(names: bytes | memoryview, start: int) -> int:
    """The offset behind the name that begins at `start`. `names`: names in wire form, end to end."""
    while length := names[start]:
        start += 1 + length
    return start + 1


def is_name(octets: bytes) -> bool:
    """Whether these octets are one whole name in lower case. For octets from another process or from disk."""
    at = 0
    while at < len(octets) and 0 < octets[at] <= MAX_LABEL:
        at += 1 + octets[at]
    return at == len(octets) - 1 and not octets[at] and len(octets) <= MAX_NAME and octets == octets.lower()


def labels(name: bytes) -> Iterator[bytes]:
    """The labels of a name, leftmost first, without the empty one of the root."""
    i = 0
    while length := name[i]:
        yield name[i + 1 : i + 1 + length]
        i += 1 + length


def suffixes(name: Name) -> Iterator[Name]:
    """The name itself, then each name above it, up to its top-level domain; nothing for the root."""
    i = 0
    while name[i]:
        yield Name(name[i:])
        i += 1 + name[i]


def is_below(name: bytes, above: Name) -> bool:
    """Whether a name is this one or below it."""
    return name.endswith(above) and (above == ROOT or above in suffixes(Name(name)))


def read(packet: bytes, offset: int, names_at: dict[int, Name] | None = None) -> tuple[Name, int]:
    """The name at `offset` of a message and the offset behind it. MessageError(FORMERR) where there is none; its offset is the
    message's end when the name is cut short.

    `names_at`: the names read in this message so far, by the offsets at which they and the names above them begin; this adds
    to it. A compression pointer must lead to one of these, "a prior occurrence of the same name" (RFC 1035 section 4.1.4). So
    no loop is possible (RFC 9267 section 2), each pointer costs one look-up, and nothing that differs in another message with
    the same records, such as the header or a TTL, can be read as part of a name.
    """
    if names_at is None:
        names_at = {}
    labels: list[int] = []
    at, tail, rest = offset, 1, ROOT
    try:
        while length := packet[at]:
            if length > MAX_LABEL:
                tail, rest = 2, names_at[(length << 8 | packet[at + 1]) - 0xC000]  # negative for other kinds of labels
                break
            labels.append(at)
            at += 1 + length
            if at - offset >= MAX_NAME:
                raise MessageError(FORMERR, offset)
    except IndexError:
        raise MessageError(FORMERR, len(packet)) from None
    except KeyError:
        raise MessageError(FORMERR, at) from None
    names_at[at] = rest
    if not labels:
        return rest, at + tail
    name = Name(packet[offset:at].lower() + rest)
    if len(name) > MAX_NAME:
        raise MessageError(FORMERR, offset)
    for label in labels:
        names_at[label] = Name(name[label - offset :])
    return name, at + tail


def reverse(packed: bytes) -> Name:
    """The owner of the PTR records of an address of 4 or 16 octets (RFC 1035 section 3.5, RFC 3596 section 2.5)."""
    if len(packed) == 4:
        return from_text(".".join(str(octet) for octet in reversed(packed)) + ".in-addr.arpa")
    return from_text(".".join(reversed(packed.hex())) + ".ip6.arpa")
