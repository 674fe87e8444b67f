"""TOML text → a frozen Config, all problems at once.

Each option is declared once, in OPTIONS, with its default, its check and the help that the reference and the man page show.
Raw values are checked first; only when nothing is wrong is the typed Config built.
"""

import difflib
import ipaddress
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from embargo import names
from embargo.errors import ConfigError, Problem
from embargo.policy import BYPASS_FUNCTIONS, FUNCTIONS, Action, Selection
from embargo.upstream import Server

BLOCK_MODES = ("nxdomain", "nodata", "null", "refused")


class Listen(NamedTuple):
    """`address` and `port`, or an interface (`address` empty) whose addresses are meant."""

    address: str
    port: int
    interface: str = ""


@dataclass(frozen=True, slots=True)
class Dns:
    listen: tuple[Listen, ...]
    allow_from: tuple[str, ...]  # networks, or "local"
    upstream: tuple[Server, ...]  # what "system" stands for is left out here
    upstream_system: bool
    forward: tuple[tuple[str, tuple[Server, ...]], ...]
    hosts: tuple[str, ...]
    workers: int | None  # None: as many as the machine has processors, at most 4
    block_mode: str | tuple[str, ...]
    block_ttl: int


@dataclass(frozen=True, slots=True)
class Lists:
    apps: tuple[str, ...]
    allow: str
    block: str


@dataclass(frozen=True, slots=True)
class Firewall:
    enabled: bool
    lan: tuple[str, ...]
    except_: tuple[str, ...]
    intercept_dns: bool
    learn: bool
    fail: str
    on_stop: str
    log_group: int


@dataclass(frozen=True, slots=True)
class Log:
    events: str
    names: str
    max_bytes: int
    keep: int


@dataclass(frozen=True, slots=True)
class State:
    dir: str
    runtime: str
    user: str
    group: str


@dataclass(frozen=True, slots=True)
class Config:
    file: str
    dns: Dns
    policy: Selection
    lists: Lists
    firewall: Firewall
    log: Log
    state: State
    text: str = field(default="", compare=False, repr=False)  # as read; two texts that mean the same are the same configuration

    @property
    def control(self) -> str:
        return f"{self.state.runtime}/control.sock"


class Refused(ValueError):
    """What is wrong with a value, and what would be right."""

    def __init__(self, message: str, hint: str) -> None:
        self.message = message
        self.hint = hint
        super().__init__(f"{message}, {hint}")


def _endpoint(text: str, default_port: int) -> tuple[str, int]:
    """`192.0.2.1`, `192.0.2.1:53`, `2001:db8::1` or `[2001:db8::1]:53` as address and port."""
    host, port = text, str(default_port)
    if text.startswith("["):
        host, bracket, rest = text[1:].partition("]")
        if not bracket or (rest and not rest.startswith(":")):
            raise Refused(f'"{text}" is not an address', "write [2001:db8::1]:53")
        port = rest[1:] if rest else port
    elif text.count(":") == 1:
        host, _, port = text.partition(":")
    try:
        ipaddress.ip_address(host)
    except ValueError:
        raise Refused(f'"{host}" is not an IP address', "write it as in 192.0.2.53 or [2001:db8::53]:53") from None
    if not (port.isascii() and port.isdecimal() and len(port) < 6 and 0 < int(port) < 65536):
        raise Refused(f'"{port}" is not a port', "a port is a number from 1 to 65535")
    return host, int(port)


def _listen(value: Any) -> Listen:
    if not isinstance(value, str):
        raise Refused("wrong type", 'write "address:port" or an interface name')
    if value and ":" not in value and not value[0].isdigit() and len(value) < 16 and "/" not in value:
        return Listen("", 53, value)
    name, _, port = value.rpartition(":")
    if name and ":" not in name and not name[0].isdigit() and "." not in name and len(name) < 16 and port.isdecimal():
        return Listen("", int(port), name)
    address, number = _endpoint(value, 53)
    return Listen(address, number)


def _server(value: Any) -> Server:
    if not isinstance(value, str):
        raise Refused("wrong type", 'write an address such as "192.0.2.53"')
    scheme, separator, rest = value.partition("://")
    if not separator:
        scheme, rest = "udp", value
    if scheme == "tls":
        raise Refused(f'"{value}": DNS over TLS to the upstream is not in this version', "use a plain address or tcp://")
    if scheme not in ("udp", "tcp"):
        raise Refused(f'"{value}" has an unknown scheme', "write an address alone or tcp://address")
    address, port = _endpoint(rest, 53)
    return Server(address, port, scheme == "tcp")


def _network(value: Any) -> str:
    try:
        if not isinstance(value, str):
            raise ValueError
        return str(ipaddress.ip_network(value))
    except ValueError:
        raise Refused(f'"{value}" is not a network', "write it as in 192.0.2.0/24 or 2001:db8::/32") from None


def _source(value: Any) -> str:
    return value if value == "local" else _network(value)


def _text(value: Any) -> str:
    if not isinstance(value, str) or not value:
        raise Refused("wrong type", "it must be a string")
    return value


def _path(value: Any) -> str:
    if not isinstance(value, str) or not value.startswith("/") or "\0" in value:
        raise Refused(f'"{value}" is not an absolute path', "write it from / on")
    return value


def _interface(value: Any) -> str:
    if not isinstance(value, str) or not 0 < len(value) < 16 or "/" in value or not value.isprintable() or " " in value:
        raise Refused(f'"{value}" is not an interface name', "see `ip link`; a name has at most 15 characters")
    return value


def _bool(value: Any) -> bool:
    if not isinstance(value, bool):
        raise Refused("wrong type", "it must be true or false")
    return value


def _int(low: int, high: int) -> Callable[[Any], int]:
    def check(value: Any) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise Refused(f"{value!r} is not allowed", f"it must be a number from {low} to {high}")
        return value

    return check


def _choice(*words: str) -> Callable[[Any], str]:
    def check(value: Any) -> str:
        if value not in words or not isinstance(value, str):
            near = difflib.get_close_matches(str(value), words, 1)
            meant = f'did you mean "{near[0]}"? ' if near else ""
            raise Refused(f'"{value}" is not allowed', f"{meant}it must be one of {', '.join(words)}")
        return value

    return check


def _many(check: Callable[[Any], Any]) -> Callable[[Any], tuple[Any, ...]]:
    def every(value: Any) -> tuple[Any, ...]:
        if not isinstance(value, list):
            raise Refused("wrong type", 'it must be a list, as in ["…"]')
        checked, bad = [], []
        for number, item in enumerate(value):
            try:
                checked.append(check(item))
            except Refused as refused:
                bad.append((number, refused))
        if bad:
            raise _Several(bad)
        return tuple(checked)

    return every


class _Several(ValueError):
    def __init__(self, bad: list[tuple[int, Refused]]) -> None:
        self.bad = bad
        super().__init__()


def _either(words: Mapping[Any, Any], check: Callable[[Any], Any]) -> Callable[[Any], Any]:
    def one(value: Any) -> Any:
        if isinstance(value, (str, bool)):
            if value in words and type(value) in {type(w) for w in words}:
                return words[value]
            shown = ", ".join(f'"{w}"' if isinstance(w, str) else str(w).lower() for w in words)
            raise Refused(f"{value!r} is not allowed".replace("'", '"'), f"it must be {shown} or a list")
        return check(value)

    return one


def _forward(value: Any) -> tuple[tuple[str, tuple[Server, ...]], ...]:
    if not isinstance(value, dict):
        raise Refused("wrong type", 'write { "corp.example" = ["192.0.2.10"] }')
    zones = []
    for zone, servers in value.items():
        try:
            names.from_text(zone)
        except ValueError as error:
            raise Refused(f'"{zone}" is not a domain name', str(error)) from None
        try:
            zones.append((zone, _many(_server)(servers)))
        except _Several as several:
            raise Refused(f'"{zone}": {several.bad[0][1].message}', several.bad[0][1].hint) from None
    return tuple(zones)


def _upstream(value: Any) -> tuple[Server | str, ...]:
    found: tuple[Server | str, ...] = _many(lambda item: item if item == "system" else _server(item))(value)
    if not found:
        raise Refused("is empty", 'write ["system"] or the address of a resolver')
    return found


def _not_empty(check: Callable[[Any], tuple[Any, ...]]) -> Callable[[Any], tuple[Any, ...]]:
    def full(value: Any) -> tuple[Any, ...]:
        checked = check(value)
        if not checked:
            raise Refused("is empty", "name at least one")
        return checked

    return full


def _workers(value: Any) -> int | None:
    return None if value == "auto" else _int(0, 64)(value)


def _block_mode(value: Any) -> str | tuple[str, ...]:
    if isinstance(value, str):
        return _choice(*BLOCK_MODES)(value)
    addresses = _many(lambda item: _endpoint(_text(item), 53)[0])(value)
    if not addresses:
        raise Refused("is empty", f"write one of {', '.join(BLOCK_MODES)} or a list of addresses")
    return addresses


class Option(NamedTuple):
    default: Any
    check: Callable[[Any], Any]
    help: str


OPTIONS: dict[str, dict[str, Option]] = {
    "dns": {
        "listen": Option(["127.0.0.1:53", "[::1]:53"], _not_empty(_many(_listen)),
            "addresses to answer on, UDP and TCP; an interface name means its addresses"),
        "allow_from": Option(["local"], _many(_source),
            '"local" (loopback, private, link-local and the lan interfaces\' own networks) or networks; others get no answer'),
        "upstream": Option(["system"], _upstream,
            '"system" (the machine\'s resolvers) or addresses: "192.0.2.53", "tcp://192.0.2.53", each with optional :port'),
        "forward": Option({}, _forward, 'zones that go elsewhere: { "corp.example" = ["192.0.2.10"] }, reverse zones too'),
        "hosts": Option([], _many(_path), "hosts files with local records"),
        "workers": Option("auto", _workers, "resolver processes"),
        "block_mode": Option("nxdomain", _block_mode,
            'answer to a blocked name: nxdomain, nodata, null, refused or ["address", …]'),
        "block_ttl": Option(10, _int(0, 86400), "seconds a client may keep a block"),
    },
    "policy": {
        "apps": Option("default", _either({"default": "default", "all": "all"}, _many(_text)),
            '"default" (the eight of Executive Order 13971), "all" or a list of app ids'),
        "functions": Option(["payment", "telemetry"], _either({"all": "all"}, _many(_choice(*FUNCTIONS))),
            'which functions of those apps; "all" for the whole app'),
        "bypass": Option(list(BYPASS_FUNCTIONS), _many(_choice(*BYPASS_FUNCTIONS)), "which ways round the filter are closed"),
        "shared": Option(False, _either({True: True, False: False}, _many(_text)),
            "also the entries that break others: true, false or a list of app ids"),
        "mode": Option("block", _choice("block", "audit"), "audit: log what would be blocked and let it pass"),
    },
    "lists": {
        "apps": Option(["/usr/share/embargo/blocklists", "/etc/embargo/apps.d"], _not_empty(_many(_path)),
            "directories of apps; an app in a later one replaces the one of the same id"),
        "allow": Option("/etc/embargo/allow.list", _path, "the administrator's exceptions, consulted first"),
        "block": Option("/etc/embargo/block.list", _path, "the administrator's additions"),
    },
    "firewall": {
        "enabled": Option(True, _bool, "block addresses with nftables"),
        "lan": Option([], _many(_interface), "interfaces of policed clients; empty: all forwarded traffic, no interception"),
        "except": Option([], _many(_network), "client addresses or networks never policed"),
        "intercept_dns": Option(True, _bool, "on lan interfaces, port 53 to any other resolver comes to us"),
        "learn": Option(True, _bool, "block the addresses behind blocked names too (not in this version yet)"),
        "fail": Option("closed", _choice("closed", "open"), "clients' port 53 while nobody answers: rejected or passed on"),
        "on_stop": Option("keep", _choice("keep", "remove"), "the rules when the agent stops"),
        "log_group": Option(8137, _int(0, 65535), "the NFLOG group of the drop log"),
    },
    "log": {
        "events": Option("/var/log/embargo/events.jsonl", _path, "the event log"),
        "names": Option("blocked", _choice("blocked", "all", "none"), "whose queries are logged; none: without the name"),
        "max_bytes": Option(64 << 20, _int(4096, 1 << 40), "size at which the event log is rotated"),
        "keep": Option(5, _int(1, 1000), "rotated event logs kept"),
    },
    "state": {
        "dir": Option("/var/lib/embargo", _path, "generations and local lists"),
        "runtime": Option("/run/embargo", _path, "the control socket"),
        "user": Option("embargo-dns", _text, "the user that resolvers run as (nobody where it does not exist)"),
        "group": Option("embargo", _text, "the group that may use the control socket"),
    },
}  # fmt: skip


def parse(data: bytes, file: str) -> Config:
    """The configuration. Raises ConfigError with every problem found."""
    try:
        text = data.decode()
        raw = tomllib.loads(text)
    except UnicodeDecodeError:
        raise ConfigError([Problem(file, 0, "it is not UTF-8", "save the file as UTF-8")]) from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigError([Problem(file, _toml_line(error), f"it is not TOML: {error}", "")]) from None
    problems: list[Problem] = []
    values: dict[str, dict[str, Any]] = {}
    for name, section in raw.items():
        if name not in OPTIONS:
            problems.append(Problem(file, 0, f"[{name}]: unknown section", _suggest(name, OPTIONS)))
        elif not isinstance(section, dict):
            problems.append(Problem(file, 0, f"{name}: wrong type", f"it is a section, [{name}]"))
    for name, options in OPTIONS.items():
        section = raw.get(name, {})
        if isinstance(section, dict):
            values[name] = _section(name, section, options, file, problems)
    if problems:
        raise ConfigError(problems)
    return _build(file, text, values)


def default(file: str = "") -> Config:
    """The configuration of an empty file."""
    return parse(b"", file)


def _toml_line(error: tomllib.TOMLDecodeError) -> int:
    _, _, rest = str(error).partition("(at line ")
    number = rest.partition(",")[0]
    return int(number) if number.isdecimal() else 0


def _suggest(word: str, known: Mapping[str, Any]) -> str:
    near = difflib.get_close_matches(word, known, 1)
    return f'did you mean "{near[0]}"?' if near else f"known are {', '.join(known)}"


def _section(
    name: str, section: Mapping[str, Any], options: Mapping[str, Option], file: str, problems: list[Problem]
) -> dict[str, Any]:
    values: dict[str, Any] = {}
    unknown = [key for key in section if key not in options]
    problems += [Problem(file, 0, f"{name}.{key}: unknown key", _suggest(key, options)) for key in unknown]
    for key, option in options.items():
        try:
            values[key] = option.check(section.get(key, option.default))
        except Refused as refused:
            problems.append(Problem(file, 0, f"{name}.{key}: {refused.message}", refused.hint))
        except _Several as several:
            problems += [
                Problem(file, 0, f"{name}.{key}[{number}]: {refused.message}", refused.hint) for number, refused in several.bad
            ]
    return values


def _build(file: str, text: str, values: dict[str, dict[str, Any]]) -> Config:
    dns, policy, firewall = dict(values["dns"]), dict(values["policy"]), dict(values["firewall"])
    servers = dns.pop("upstream")
    mode = Action.BLOCK if policy.pop("mode") == "block" else Action.AUDIT
    return Config(
        file=file,
        dns=Dns(**dns, upstream=tuple(s for s in servers if s != "system"), upstream_system="system" in servers),
        policy=Selection(**policy, mode=mode),
        lists=Lists(**values["lists"]),
        firewall=Firewall(except_=firewall.pop("except"), **firewall),
        log=Log(**values["log"]),
        state=State(**values["state"]),
        text=text,
    )


def reference() -> str:
    """Every option with its default and help, as a configuration file in which all is commented out."""
    out = ["# Embargo's configuration. Every key is optional; what stands here are the defaults.", ""]
    for name, options in OPTIONS.items():
        out.append(f"[{name}]")
        for key, option in options.items():
            out += [f"# {option.help}", f"#{key} = {_toml(option.default)}"]
        out.append("")
    return "\n".join(out)


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return "[" + ", ".join(map(_toml, value)) + "]"
    if isinstance(value, dict):
        return "{}"
    return f'"{value}"' if isinstance(value, str) else str(value)
