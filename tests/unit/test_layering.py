"""Decisions are made in code that does no I/O, and imports point downwards. Read from the syntax trees."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import embargo

PACKAGE = Path(embargo.__file__).parent

#: who may import whom: any module of a line above
TIERS = (
    ("accelerator", "errors"),
    ("names", "toml", "events", "spans"),
    ("policy", "table"),
    ("learning", "lists", "message", "pauses", "upstream"),
    ("image",),
    ("cache", "config", "response", "ruleset"),
    ("fastpath", "listing", "nft"),
    ("engine", "export"),
)
CORE = {module: height for height, tier in enumerate(TIERS) for module in tier}

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


def imports(module: ast.Module) -> Iterator[tuple[int, str]]:
    """(line, dotted name) of everything a module imports, wherever it stands."""
    for node in ast.walk(module):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            source = "embargo" + (f".{node.module}" if node.module else "") if node.level else node.module or ""
            if source == "embargo":
                yield from ((node.lineno, f"embargo.{alias.name}") for alias in node.names)
            else:
                yield node.lineno, source


def faults(name: str, module: ast.Module) -> Iterator[str]:
    """What a core module does that it must not, with the reason."""
    for line, imported in imports(module):
        top, _, inner = imported.partition(".")
        inner = inner.partition(".")[0]
        if top != "embargo":
            if top not in PURE and (name, top) not in CHOOSING:
                yield f"{name}.py:{line}: imports {top}, which may do I/O; hand the value in, or do it in daemon/"
        elif inner not in CORE:
            yield f"{name}.py:{line}: imports embargo.{inner}, which is no core module: an arrow from core to shell"
        elif CORE[inner] >= CORE[name]:
            yield f"{name}.py:{line}: imports embargo.{inner}, which does not stand below it"
    for node in ast.walk(module):
        if isinstance(node, ast.Name) and node.id in CALLS:
            yield f"{name}.py:{node.lineno}: uses {node.id}; the core reaches nothing but its arguments"
        elif isinstance(node, ast.Attribute) and node.attr in METHODS:
            yield f"{name}.py:{node.lineno}: reads .{node.attr}: time and chance come in as arguments"
        elif isinstance(node, (ast.AsyncFunctionDef, ast.Await)):
            yield f"{name}.py:{node.lineno}: waits; the core answers at once"
        elif isinstance(node, ast.Global):
            yield f"{name}.py:{node.lineno}: changes a module's variable; state lives in named objects"


@pytest.mark.parametrize("name", CORE)
def test_a_core_module_does_no_io_and_imports_downwards(name: str) -> None:
    assert list(faults(name, tree(PACKAGE / f"{name}.py"))) == []


def test_every_module_is_core_or_shell() -> None:
    modules = {path.stem for path in PACKAGE.glob("*.py")} - {"__init__", "__main__"}
    assert modules == set(CORE) | {"cli", "show"}


def test_the_package_itself_imports_nothing() -> None:
    assert list(imports(tree(PACKAGE / "__init__.py"))) == []
    assert list(imports(tree(PACKAGE / "daemon" / "__init__.py"))) == []


@pytest.mark.parametrize("path", sorted((PACKAGE / "daemon").glob("*.py")), ids=lambda path: path.stem)
def test_a_daemon_module_knows_nothing_of_the_command_line(path: Path) -> None:
    assert [name for _, name in imports(tree(path)) if name in ("embargo.cli", "embargo.show", "click", "rich")] == []


def test_the_daemon_knows_nothing_of_verify() -> None:
    """What it brings along (scapy, hand-made packets) has no place in a process that runs for months."""
    for path in PACKAGE.rglob("*.py"):
        if path.parent.name != "verify" and path.name != "cli.py":
            assert not [name for _, name in imports(tree(path)) if name.startswith("embargo.verify")], path


def test_scapy_is_loaded_for_hand_made_packets_alone() -> None:
    """Slow to import, and optional: not at the top of a module, and nowhere else."""
    for path in PACKAGE.rglob("*.py"):
        module = tree(path)
        loaded = [line for line, name in imports(module) if name.partition(".")[0] == "scapy"]
        top = [node.lineno for node in module.body if isinstance(node, (ast.Import, ast.ImportFrom))]
        assert not loaded or path.relative_to(PACKAGE).as_posix() == "verify/packets.py", path
        assert not set(loaded) & set(top)


@pytest.mark.parametrize(
    ("source", "fault"),
    [
        ("import socket", "policy.py:1: imports socket, which may do I/O; hand the value in, or do it in daemon/"),
        ("from os import path", "policy.py:1: imports os, which may do I/O; hand the value in, or do it in daemon/"),
        ("def f():\n    import time", "policy.py:2: imports time, which may do I/O; hand the value in, or do it in daemon/"),
        ("import logging.handlers", "policy.py:1: imports logging, which may do I/O; hand the value in, or do it in daemon/"),
        ("from embargo import image", "policy.py:1: imports embargo.image, which does not stand below it"),
        ("from . import image", "policy.py:1: imports embargo.image, which does not stand below it"),
        ("from .image import Image", "policy.py:1: imports embargo.image, which does not stand below it"),
        ("import embargo.engine", "policy.py:1: imports embargo.engine, which does not stand below it"),
        ("from embargo.policy import App", "policy.py:1: imports embargo.policy, which does not stand below it"),
        ("from embargo.daemon import netlink",
            "policy.py:1: imports embargo.daemon, which is no core module: an arrow from core to shell"),
        ("from embargo import show", "policy.py:1: imports embargo.show, which is no core module: an arrow from core to shell"),
        ("x = open('a')", "policy.py:1: uses open; the core reaches nothing but its arguments"),
        ("print(1)", "policy.py:1: uses print; the core reaches nothing but its arguments"),
        ("x = datetime.now()", "policy.py:1: reads .now: time and chance come in as arguments"),
        ("async def f(): pass", "policy.py:1: waits; the core answers at once"),
        ("def f():\n    global x", "policy.py:2: changes a module's variable; state lives in named objects"),
    ],
)  # fmt: skip
def test_the_test_sees_it(source: str, fault: str) -> None:
    assert list(faults("policy", ast.parse(source))) == [fault]
