"""Generations on a real file system: numbered, verified, replaced as a whole."""

import errno
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from embargo import config, records
from embargo.daemon.compile import compiler, sources
from embargo.daemon.supervise import generations
from embargo.daemon.supervise.generations import KEEP, Store
from embargo.errors import ImageError
from embargo.lists import image, lists, policy
from embargo.lists.image import Image
from embargo.lists.lists import Guard
from embargo.lists.policy import App, Level, Selection, Source

SETTINGS = config.default()


@pytest.fixture
def store(tmp_path: Path) -> Store:
    made = Store(str(tmp_path))
    made.prepare()
    return made


def compiled(store: Store, text: str = "alipay.example\n") -> int:
    """Write the files of a compilation and number them."""
    source = Source("alipay/payment.list", Level.APPS, "alipay", "payment", False)
    list_ = lists.parse(text.encode(), file="payment.list", source=source, guard=Guard())
    apps = [App("alipay", "Alipay", default=True, lists=(list_,))]
    combined = policy.combine(apps, (), Selection())
    board = policy.select(apps, combined.classes, Selection())
    workshop = Path(store.workshop())
    data = image.encode(combined)
    (workshop / "policy.img").write_bytes(data)
    made = compiler.report(SETTINGS, sources.Loaded(tuple(apps), (), {}, ()), Image(data), board)
    (workshop / "report.json").write_text(json.dumps(records.encode(made)))
    return store.number(str(workshop))


def test_a_new_store_has_nothing_current(store: Store) -> None:
    assert store.current() == 0


def test_generations_are_numbered_and_the_current_one_is_remembered(store: Store) -> None:
    assert [compiled(store), compiled(store)] == [1, 2]
    store.make_current(2)
    assert store.current() == 2
    generation = store.load(2, SETTINGS)
    assert len(generation.image) == 1
    generation.close()


def test_old_generations_are_removed_but_never_the_current_one(store: Store, tmp_path: Path) -> None:
    first = compiled(store)
    store.make_current(first)
    numbers = [compiled(store) for _ in range(KEEP + 3)]
    store.make_current(first)
    store.prune()
    kept = sorted(int(path.name) for path in (tmp_path / "generations").glob("0*"))
    assert kept == [first, *numbers[-KEEP:]]


@pytest.mark.parametrize("failing", ["listdir", "readlink", "rmdir"])
def test_generations_that_cannot_be_removed_now_are_removed_next_time(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    """A reload has succeeded by then: nothing after it may fail."""

    def refused(*arguments: Any, **more: Any) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    numbers = [compiled(store) for _ in range(KEEP + 2)]
    store.make_current(numbers[-1])
    with monkeypatch.context() as patched:
        patched.setattr(os, failing, refused)
        store.prune()
    assert len(list((tmp_path / "generations").glob("0*"))) == KEEP + 2
    store.prune()
    assert len(list((tmp_path / "generations").glob("0*"))) == KEEP


@pytest.mark.parametrize("place", [0, 20, -1])
def test_a_damaged_image_is_refused(store: Store, tmp_path: Path, place: int) -> None:
    number = compiled(store)
    path = tmp_path / f"generations/{number:06}/policy.img"
    data = bytearray(path.read_bytes())
    data[place] ^= 0xFF
    path.write_bytes(data)
    with pytest.raises(ImageError):
        store.load(number, SETTINGS)


@pytest.mark.parametrize(
    "change",
    [
        lambda report: "", lambda report: {}, lambda report: [], lambda report: report | {"switchboard": {"actions": []}},
        lambda report: report | {"switchboard": {"actions": [9, 9, 9]}}, lambda report: report | {"version": 0},
        lambda report: report | {"more": 1}, lambda report: [report], lambda report: report | {"names": True},
        lambda report: report | {"digest": "00" * 32}, lambda report: report | {"problems": [["a", 1, "b"]]},
        lambda report: report | {"hosts": {"x..y": ["192.0.2.1"]}}, lambda report: report | {"hosts": {"\ud800": []}},
        lambda report: report | {"hosts": {"a.test": ["192.0.2.256"]}}, lambda report: report | {"tls_ca": "x"},
        lambda report: report | {"tls_ca": "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----"},
    ],
)  # fmt: skip
def test_a_report_that_does_not_match_is_refused(store: Store, tmp_path: Path, change: Callable[[Any], Any]) -> None:
    number = compiled(store)
    path = tmp_path / f"generations/{number:06}/report.json"
    path.write_text(json.dumps(change(json.loads(path.read_text()))))
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(ImageError):
        store.load(number, SETTINGS)
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize("text", ["", "a\nb", "\x1b[2J", "x" * 5000, 7, None])
@pytest.mark.parametrize("place", ["class", "path"])
def test_an_image_with_names_that_cannot_be_is_refused(store: Store, text: Any, place: str) -> None:
    generation = store.load(compiled(store), SETTINGS)
    image: Any = generation.image
    if place == "class":
        image.classes = ((text, "payment"), *image.classes[1:])
    else:
        image.sources = (image.sources[0]._replace(path=text), *image.sources[1:])
    with pytest.raises(ImageError):
        generations._check(generation.report, image)
    generation.close()


def test_incomplete_results_of_a_crash_are_removed(store: Store, tmp_path: Path) -> None:
    half = Path(store.workshop())
    (half / "policy.img").write_bytes(b"half")
    Store(str(tmp_path)).prepare()
    assert not half.exists()
    assert compiled(store) == 1
