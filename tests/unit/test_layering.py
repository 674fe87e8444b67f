"""The rooms of the house: the core does no I/O, and every import points downwards.

Read from the syntax trees, and from the text of the compiled twins.
"""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import embargo
from embargo import accelerator

PACKAGE = Path(embargo.__file__).parent

#: the core: any module may import those of a line above
TIERS = (
    ("accelerator", "errors", "export.formats"),
    ("names", "records", "toml", "firewall.spans", "firewall.wire"),
    ("events",),
    ("checks", "lists.columns", "firewall.layout", "firewall.table"),
    ("lists.policy",),
    ("report",),
    ("firewall.learning", "lists.lists", "dns.acl", "dns.message", "dns.shares", "lists.pauses", "dns.upstream"),
    ("lists.image", "dns.compose", "dns.special"),
    ("dns.cache", "config", "dns.failures", "dns.rdata", "dns.judgement", "dns.zones", "firewall.ruleset", "verdicts"),
    ("dns.response", "dns.denials"),
    ("dns.fastpath", "dns.questions", "dns.screening", "firewall.listing", "firewall.nft"),
    ("firewall.change", "dns.engine"),
    ("explain", "export.effective", "uncovered"),
    ("export.draft",),
    ("export.domains", "export.resolvers", "export.rpz", "export.nft"),
    ("export.render",),
)
CORE = {module: height for height, tier in enumerate(TIERS) for module in tier}

#: the shell: folder → the folders that it may import beside itself and the core; a process never imports another one
FOLDERS = {
    "daemon.process": set[str](),
    "daemon.host": {"daemon.process"},
    "daemon.log": {"daemon.process", "daemon.host"},
    "daemon.resolve": {"daemon.process", "daemon.host", "daemon.log"},
    "daemon.guard": {"daemon.process", "daemon.host", "daemon.log"},
    "daemon.compile": {"daemon.process", "daemon.host", "daemon.log"},
    "daemon.supervise": {"daemon.process", "daemon.host", "daemon.log"},
    "daemon.ask": {"daemon.process", "daemon.host", "daemon.log", "daemon.supervise"},
    "verify": {"daemon.process", "daemon.host", "daemon.supervise", "daemon.ask"},
    "cli": {"daemon.process", "daemon.host", "daemon.log", "daemon.supervise", "daemon.ask", "verify"},
}
#: what other folders may import of a process: its orders; and the folders that may
ORDERS = "orders"
ASKING = ("daemon.supervise", "daemon.ask", "cli", "verify")
#: arrows that no rule above allows, each with its reason
EXCEPTIONS = {
    ("daemon.supervise.workers", "daemon.resolve.resolver"): "workers = 0 runs the resolver inside the supervisor",
    ("cli.check", "daemon.resolve.tls"): "check looks at certificates as a resolver does",
}

#: compiled twin → the module whose functions it compiles. It may import that module and what that module may import
TWINS = {
    "native.attempts": "daemon.resolve.attempts",
    "native.columns": "lists.columns",
    "native.events": "events",
    "native.fastpath": "dns.fastpath",
    "native.image": "lists.image",
    "native.intake": "daemon.resolve.intake",
    "native.lists": "lists.lists",
    "native.message": "dns.message",
    "native.response": "dns.response",
}
#: declarations that twins share, without a module of their own: any twin may use the first ones, the shell alone the last
SHARED = ("native.octets", "native.hashes", "native.folding")
SOCKETS = "native.sockets"
#: of the C library, what computes
PURE_C = ("cpython", "cython", "libc.stdint", "libc.stdlib", "libc.string")

#: lines of a module: what can be read in one sitting
MAX_LINES = 450

#: what the core may use of others: nothing here opens, waits, asks the machine or remembers
PURE = {
    "array", "bisect", "collections", "contextlib", "dataclasses", "datetime", "difflib", "enum", "functools", "hashlib",
    "heapq", "ipaddress", "itertools", "json", "math", "operator", "re", "string", "struct", "tomllib", "types", "typing",
    "zlib",
    "dnslib", "idna",
}  # fmt: skip
#: one module looks at one environment variable, once, and loads the compiled twins
CHOOSING = {("accelerator", "os"), ("accelerator", "importlib")}
#: calls that reach the world without an import of their own
CALLS = {"open", "print", "input", "exec", "eval", "compile", "breakpoint", "__import__", "globals", "vars"}
#: clocks and randomness inside modules that are pure otherwise
METHODS = {"now", "today", "utcnow", "urandom", "getrandom"}


def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(), str(path))


def modules() -> dict[str, Path]:
    """Every module of the package by its dotted name below `embargo`."""
    found = {path.relative_to(PACKAGE).with_suffix("").as_posix().replace("/", "."): path for path in PACKAGE.rglob("*.py")}
    return {name: path for name, path in found.items() if name.rpartition(".")[2] not in ("__init__", "__main__")}


MODULES = modules()


def imports(module: ast.Module) -> Iterator[tuple[int, str]]:
    """(line, dotted name) of everything a module imports, wherever it stands; of ours the module, not what is in it."""
    for node in ast.walk(module):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: imports are absolute"
            source = node.module or ""
            if source.partition(".")[0] != "embargo" or source.removeprefix("embargo.") in MODULES:
                yield node.lineno, source
            else:
                yield from ((node.lineno, f"{source}.{alias.name}") for alias in node.names)


_IMPORT = re.compile(
    r"""^[ \t]*(?:from[ ]+(?P<source>[\w.]+)[ ]+)?c?import[ ]+(?P<names>\([^)]*\)|[^#\n]+)
    | ^[ \t]*cdef[ ]extern[ ]from[ ]"<?(?P<header>[\w./]+)""",
    re.MULTILINE | re.VERBOSE,
)


def compiled_imports(text: str) -> Iterator[tuple[int, str]]:
    """(line, dotted name or C header) of everything that Cython source imports or cimports; of ours the module as above."""
    for found in _IMPORT.finditer(text):
        line = text.count("\n", 0, found.start()) + 1
        given = [each.split()[0] for each in re.split("[(),]", found["names"] or "") if each.strip()]
        source = found["source"] or found["header"]
        if not source:
            yield from ((line, each) for each in given)
        elif source.partition(".")[0] == "embargo" and (PACKAGE.parent / source.replace(".", "/")).is_dir():
            yield from ((line, f"{source}.{each}") for each in given)
        else:
            yield line, source


def twin_faults(name: str, text: str) -> Iterator[str]:
    """What a compiled twin, or a file of declarations, imports that the module that it twins could not."""
    original = TWINS.get(name, "")
    shell = original.startswith("daemon.") or name == SOCKETS
    for line, imported in compiled_imports(text):
        top, _, inner = imported.partition(".")
        if top != "embargo":
            pure = imported == "native.h" or imported.startswith(PURE_C) or top in PURE
            if not pure and not shell:
                yield f"{name}:{line}: imports {imported}, which may do I/O"
            continue
        below = TWINS.get(inner, inner)
        if inner in SHARED or (inner == SOCKETS and shell) or below == original:
            continue
        if shell:
            folder = original.rpartition(".")[0]
            if below not in CORE and below.rpartition(".")[0] != folder:
                yield f"{name}:{line}: imports {imported}, which is neither core nor in {folder}"
        elif below not in CORE or CORE[below] >= CORE.get(original, 0):
            yield f"{name}:{line}: imports {imported}, which does not stand below {original or 'everything'}"


def core_faults(name: str, module: ast.Module) -> Iterator[str]:
    """What a core module does that it must not, with the reason."""
    for line, imported in imports(module):
        top, _, inner = imported.partition(".")
        if top != "embargo":
            if top not in PURE and (name, top) not in CHOOSING:
                yield f"{name}:{line}: imports {top}, which may do I/O; hand the value in, or do it in daemon/"
        elif inner not in CORE:
            yield f"{name}:{line}: imports {imported}, which is no core module: an arrow from core to shell"
        elif CORE[inner] >= CORE[name] and (name, inner) not in EXCEPTIONS:
            yield f"{name}:{line}: imports {imported}, which does not stand below it"
    for node in ast.walk(module):
        if isinstance(node, ast.Name) and node.id in CALLS:
            yield f"{name}:{node.lineno}: uses {node.id}; the core reaches nothing but its arguments"
        elif isinstance(node, ast.Attribute) and node.attr in METHODS:
            yield f"{name}:{node.lineno}: reads .{node.attr}: time and chance come in as arguments"
        elif isinstance(node, (ast.AsyncFunctionDef, ast.Await)):
            yield f"{name}:{node.lineno}: waits; the core answers at once"
        elif isinstance(node, ast.Global):
            yield f"{name}:{node.lineno}: changes a module's variable; state lives in named objects"


def shell_faults(name: str, module: ast.Module) -> Iterator[str]:
    """The arrows from a module of the shell that point up, or into another process."""
    folder = name.rpartition(".")[0]
    for line, imported in imports(module):
        top, _, inner = imported.partition(".")
        if top != "embargo" or inner in CORE or not inner:
            continue
        target = inner if inner in FOLDERS else inner.rpartition(".")[0]
        if target != folder and target not in FOLDERS[folder] and (name, inner) not in EXCEPTIONS:
            if inner.rpartition(".")[2] == ORDERS and folder in ASKING:
                continue
            yield f"{name}:{line}: imports {imported}: {folder} may import {', '.join(sorted(FOLDERS[folder])) or 'the core'}"


def test_every_module_is_core_or_stands_in_a_folder_of_the_shell() -> None:
    for name in MODULES:
        assert name in CORE or name.rpartition(".")[0] in FOLDERS, f"{name}: which room is it in?"
    assert set(CORE) <= set(MODULES)
    assert {name.rpartition(".")[0] for name in MODULES if name not in CORE} == set(FOLDERS)


@pytest.mark.parametrize("name", CORE)
def test_a_core_module_does_no_io_and_imports_downwards(name: str) -> None:
    assert list(core_faults(name, tree(MODULES[name]))) == []


@pytest.mark.parametrize("name", sorted(set(MODULES) - set(CORE)))
def test_a_module_of_the_shell_imports_downwards_and_no_other_process(name: str) -> None:
    assert list(shell_faults(name, tree(MODULES[name]))) == []


@pytest.mark.parametrize("path", sorted((PACKAGE / "native").glob("*.p[yx][xd]")), ids=lambda path: path.name)
def test_a_compiled_twin_imports_what_its_original_may(path: Path) -> None:
    assert list(twin_faults(f"native.{path.stem}", path.read_text())) == []


def test_every_compiled_module_is_a_twin() -> None:
    assert {path.relative_to(PACKAGE).with_suffix("").as_posix() for path in PACKAGE.rglob("*.pyx")} == {
        name.replace(".", "/") for name in TWINS
    }
    assert {name.removeprefix("native.") for name in TWINS} == set(accelerator.TWINS)
    assert set(TWINS.values()) <= set(MODULES)


def test_the_folders_stand_in_an_order() -> None:
    """No two may import each other, by whatever way round."""
    above: dict[str, set[str]] = {}
    for folder, below in FOLDERS.items():  # each names only folders before it
        assert below <= set(above) | below & set(FOLDERS), folder
        above[folder] = below
        assert all(folder not in FOLDERS[each] for each in below), folder


def test_no_module_is_too_long_to_read() -> None:
    """A longer one has a second idea in it: move that to a module of its own."""
    top = Path(__file__).parent.parent.parent
    paths = [path for folder in ("agent", "tools", "tests") for path in (top / folder).rglob("*.py*")]
    sources = [path for path in paths if path.suffix in (".py", ".pyx")]
    assert {path.suffix for path in sources} == {".py", ".pyx"}
    lengths = {path.relative_to(top).as_posix(): len(path.read_text().splitlines()) for path in sources}
    assert {path: lines for path, lines in lengths.items() if lines > MAX_LINES} == {}


def test_every_exception_is_used() -> None:
    for name, imported in EXCEPTIONS:
        assert imported in {found.partition(".")[2] for _, found in imports(tree(MODULES[name]))}, (name, imported)


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("__init__.py")), ids=lambda path: path.parent.name)
def test_a_package_itself_imports_nothing(path: Path) -> None:
    assert list(imports(tree(path))) == []


@pytest.mark.parametrize("name", sorted(name for name in MODULES if not name.startswith(("cli", "verify"))))
def test_only_the_command_line_prints(name: str) -> None:
    """Nothing that runs for months loads what makes tables and reads arguments, nor hand-made packets."""
    found = [imported for _, imported in imports(tree(MODULES[name]))]
    assert not [each for each in found if each.partition(".")[0] in ("click", "scapy")]


def test_the_command_line_explains_without_dnslib() -> None:
    """It takes a tenth of a verb's time to load; only a resolver composes answers, and `verify` reads them."""
    loaded = {name for name, path in MODULES.items() if "dnslib" in {found for _, found in imports(tree(path))}}
    assert loaded == {"dns.compose", "verify.query"}
    needed, left = set[str](), ["explain", "export.render", "config", "verdicts", "dns.acl"]
    while left:
        name = left.pop()
        needed.add(name)
        ours = {found.removeprefix("embargo.") for _, found in imports(tree(MODULES[name])) if found.startswith("embargo.")}
        left += ours - needed
    assert not needed & loaded


def test_scapy_is_loaded_for_hand_made_packets_alone() -> None:
    """Slow to import, and optional: not at the top of a module, and nowhere else."""
    for name, path in MODULES.items():
        module = tree(path)
        loaded = [line for line, imported in imports(module) if imported.partition(".")[0] == "scapy"]
        top = [node.lineno for node in module.body if isinstance(node, (ast.Import, ast.ImportFrom))]
        assert not loaded or name == "verify.crafted", name
        assert not set(loaded) & set(top)


def test_one_function_reads_json() -> None:
    """The parser raises RecursionError for deep text, which no `except ValueError` expects: `records.from_json`."""
    readers = {
        name for name, path in MODULES.items() for node in ast.walk(tree(path))
        if isinstance(node, ast.Attribute) and ast.unparse(node) in ("json.load", "json.loads", "json.JSONDecoder")
    }  # fmt: skip
    assert readers == {"records"}


@pytest.mark.parametrize(
    ("source", "fault"),
    [
        ("import socket", "lists.policy:1: imports socket, which may do I/O; hand the value in, or do it in daemon/"),
        ("from os import path", "lists.policy:1: imports os, which may do I/O; hand the value in, or do it in daemon/"),
        ("def f():\n    import time", "lists.policy:2: imports time, which may do I/O; hand the value in, or do it in daemon/"),
        ("import logging.config", "lists.policy:1: imports logging, which may do I/O; hand the value in, or do it in daemon/"),
        ("from embargo.lists import image", "lists.policy:1: imports embargo.lists.image, which does not stand below it"),
        ("from embargo.lists.image import Image", "lists.policy:1: imports embargo.lists.image, which does not stand below it"),
        ("import embargo.dns.engine", "lists.policy:1: imports embargo.dns.engine, which does not stand below it"),
        ("from embargo.lists.policy import App", "lists.policy:1: imports embargo.lists.policy, which does not stand below it"),
        ("from embargo.daemon.host import nftables",
            "lists.policy:1: imports embargo.daemon.host.nftables, which is no core module: an arrow from core to shell"),
        ("from embargo.cli import show",
            "lists.policy:1: imports embargo.cli.show, which is no core module: an arrow from core to shell"),
        ("x = open('a')", "lists.policy:1: uses open; the core reaches nothing but its arguments"),
        ("print(1)", "lists.policy:1: uses print; the core reaches nothing but its arguments"),
        ("x = datetime.now()", "lists.policy:1: reads .now: time and chance come in as arguments"),
        ("async def f(): pass", "lists.policy:1: waits; the core answers at once"),
        ("def f():\n    global x", "lists.policy:2: changes a module's variable; state lives in named objects"),
    ],
)  # fmt: skip
def test_the_test_sees_what_the_core_does(source: str, fault: str) -> None:
    assert list(core_faults("lists.policy", ast.parse(source))) == [fault]


@pytest.mark.parametrize(
    ("source", "allowed"),
    [
        ("from embargo.daemon.process import channel", True),
        ("from embargo.dns import message", True),
        ("from embargo import names", True),
        ("from embargo.daemon.resolve.witness import Witness", False),
        ("from embargo.daemon.resolve import orders", False),
        ("def f():\n    from embargo.daemon.supervise import supervisor", False),
        ("import embargo.daemon.ask.control", False),
        ("from embargo.cli import show", False),
    ],
)
def test_the_test_sees_where_an_arrow_of_the_shell_points(source: str, allowed: bool) -> None:
    assert (list(shell_faults("daemon.guard.guardian", ast.parse(source))) == []) is allowed


@pytest.mark.parametrize(
    ("name", "source", "allowed"),
    [
        ("native.message", "from embargo.dns.message import Query", True),
        ("native.message", "from embargo import names", True),
        ("native.message", "from embargo.native.octets cimport made", True),
        ("native.message", "from embargo.dns import response", False),
        ("native.message", "from embargo.dns.response import parse", False),
        ("native.message", "from embargo.dns import (\n    response,\n)", False),
        ("native.message", "def f():\n    from embargo.daemon.resolve import intake", False),
        ("native.message", "from embargo.native.response cimport Reading", False),
        ("native.message", "import embargo.dns.fastpath", False),
        ("native.message", "cimport embargo.native.fastpath", False),
        ("native.message", "from embargo.native cimport fastpath", False),
        ("native.message", "from embargo.native.sockets cimport clock", False),
        ("native.message", "import socket", False),
        ("native.message", "from libc.stdio cimport fopen", False),
        ("native.message", 'cdef extern from "<sys/socket.h>":', False),
        ("native.octets", "from embargo.native.message cimport question_end", False),
        ("native.events", "from embargo.errors import ImageError", True),
        ("native.fastpath", "from embargo.native.image cimport Finder", True),
        ("native.fastpath", "from embargo.native.events cimport Kind", True),
        ("native.fastpath", "from embargo.native.intake cimport Intake", False),
        ("native.intake", "from embargo.native.sockets cimport *", True),
        ("native.intake", "from embargo.native.fastpath cimport Shortcut", True),
        ("native.intake", "from embargo.daemon.resolve import attempts", True),
        ("native.intake", "from embargo.daemon.guard import guardian", False),
        ("native.intake", "from embargo.daemon.process import channel", False),
    ],
)
def test_the_test_sees_what_a_compiled_twin_imports(name: str, source: str, allowed: bool) -> None:
    assert (list(twin_faults(name, source)) == []) is allowed
