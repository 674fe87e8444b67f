"""The generations on disk: numbered results of compilation, for the policy in force, for rollback, and for the next start.

`generations/000042/` holds one of them. `generations/current` is a symbolic link to the one in force; it is replaced by rename,
so it always names either the old or the new one. A directory gets its number only when its files are complete.
"""

import contextlib
import itertools
import json
import mmap
import os
import shutil
from dataclasses import dataclass, replace

from embargo import names, records
from embargo.config import Config
from embargo.daemon.host import authorities, whole
from embargo.errors import ImageError
from embargo.lists import lists
from embargo.lists.image import Image
from embargo.lists.pauses import Exempt
from embargo.lists.policy import Switchboard
from embargo.records import RecordError
from embargo.report import Report

IMAGE, REPORT = "policy.img", "report.json"
MAX_REPORT = 64 << 20  # octets: every line of every list may have a problem
MAX_TEXT = 4096  # characters of the path of a list
KEEP = 5  # generations on disk; they are small, and a rollback needs the previous one


@dataclass(frozen=True, slots=True)
class Generation:
    """A compiled policy with its settings; the image is mapped read-only. `fd`: the image's, for other processes."""

    number: int
    settings: Config
    image: Image
    board: Switchboard
    report: Report
    fd: int
    exempt: tuple[Exempt, ...] = ()  # clients with a switchboard of their own (`pauses`)

    @property
    def compiled_board(self) -> Switchboard:
        """The switchboard of the configuration, without pauses."""
        return self.report.switchboard

    def again(self) -> "Generation":
        """A copy with its own descriptor. OSError if there is none left."""
        return replace(self, fd=os.dup(self.fd))

    def close(self) -> None:
        """Close the descriptor. The mapping lasts as long as the image."""
        os.close(self.fd)


def _check(report: Report, image: Image) -> None:
    """ImageError for what no compiler makes of lists, and ValueError for text that no list can contain.

    The compiler parses files of others, so it may have been taken over. What it hands over goes to processes that would refuse
    it when it is in force already, and a start would fail each time.
    """
    if (report.digest, len(report.switchboard.actions)) != (image.digest, len(image.classes)):
        raise ImageError("its report belongs to another image")
    texts = [*itertools.chain.from_iterable(image.classes), *(source.path for source in image.sources)]
    if not all(isinstance(text, str) and 0 < len(text) <= MAX_TEXT and text.isprintable() for text in texts):
        raise ImageError("it names a class or a list that cannot be")
    for name, addresses in report.hosts.items():
        names.from_text(name)
        for address in addresses:
            lists.address_to_int(address)
    if report.tls_ca:
        authorities.certificates(report.tls_ca)


class Store:
    """The directory `generations` below [state] dir."""

    def __init__(self, state_dir: str) -> None:
        self._root = f"{state_dir}/generations"
        self._link = f"{self._root}/current"

    def prepare(self) -> None:
        """Create the directory and remove incomplete results of a crash. OSError."""
        os.makedirs(self._root, mode=0o750, exist_ok=True)
        for name in os.listdir(self._root):
            path = f"{self._root}/{name}"
            if os.path.islink(path) and name.startswith("."):
                os.unlink(path)
            elif name.startswith("."):
                shutil.rmtree(path, ignore_errors=True)

    def _numbers(self) -> list[int]:
        return sorted(int(name) for name in os.listdir(self._root) if name.isascii() and name.isdecimal())

    def _path(self, number: int) -> str:
        return f"{self._root}/{number:06}"

    def workshop(self) -> str:
        """A new empty directory to compile into. OSError."""
        path = f"{self._root}/.new"
        shutil.rmtree(path, ignore_errors=True)
        os.mkdir(path, 0o750)
        return path

    def number(self, workshop: str) -> int:
        """Give a directory with a complete result the next number, and return it. OSError."""
        number = max(self._numbers(), default=0) + 1
        os.rename(workshop, self._path(number))
        whole.sync(self._root)
        return number

    def again(self, number: int, report: Report) -> int:
        """Store the image of another generation under a new number, with another report. OSError."""
        path = self.workshop()
        os.link(f"{self._path(number)}/{IMAGE}", f"{path}/{IMAGE}")
        whole.fill(whole.new(f"{path}/{REPORT}"), json.dumps(records.encode(report)).encode())
        return self.number(path)

    def load(self, number: int, settings: Config, verified: str = "") -> Generation:
        """Map and verify a generation. ImageError if it is missing or damaged.

        `verified`: the digest that the compiler has just computed and verified; then the image is not verified again, which
        would take a processor from the resolvers for 25 ms per million names.
        """
        path = self._path(number)
        try:
            with open(f"{path}/{REPORT}", "rb") as file:
                report = records.decode(Report, records.from_json(file.read(MAX_REPORT)))
            fd = os.open(f"{path}/{IMAGE}", os.O_RDONLY | os.O_CLOEXEC)
            try:
                image = Image(memoryview(mmap.mmap(fd, 0, prot=mmap.PROT_READ)), trusted=bool(verified))
                if verified and image.digest != verified:
                    raise ImageError("its digest is not the one that the compiler computed")
                board = report.switchboard
                _check(report, image)
            except BaseException:
                os.close(fd)
                raise
        except (OSError, ValueError, LookupError, RecordError) as error:
            raise ImageError(f"generation {number} cannot be used: {error}") from None
        return Generation(number, settings, image, board, report, fd)

    def before(self, number: int) -> int:
        """The number of the newest older generation on disk; 0 if there is none."""
        return max((older for older in self._numbers() if older < number), default=0)

    def current(self) -> int:
        """The number that the link names: the generation in force, or at a start that of the last run; 0 if there is none."""
        with contextlib.suppress(OSError, ValueError):
            return int(os.readlink(self._link))
        return 0

    def make_current(self, number: int) -> None:
        """Point the link to this generation, atomically. OSError."""
        temporary = f"{self._root}/.current"
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        os.symlink(f"{number:06}", temporary)
        os.replace(temporary, self._link)
        whole.sync(self._root)

    def prune(self) -> None:
        """Remove all generations except the newest KEEP and the current one. What cannot be removed now goes next time."""
        with contextlib.suppress(OSError):
            current = self.current()
            for old in self._numbers()[:-KEEP] if current else ():  # 0: the link cannot be read, any of them may be the one
                if old != current:
                    shutil.rmtree(self._path(old), ignore_errors=True)

    def discard(self, number: int) -> None:
        """Remove a generation that did not take effect."""
        shutil.rmtree(self._path(number), ignore_errors=True)
