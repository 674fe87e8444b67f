"""The numbered results of compiling, on disk: what is in force, what was before, and what a start falls back on.

`generations/000042/` holds one; `generations/current` is a link to the one in force and is replaced by rename, so it names
the old or the new one whatever happens. A directory gets its number only when it is whole.
"""

import contextlib
import json
import mmap
import os
import shutil
from dataclasses import dataclass, replace

from embargo import records
from embargo.config import Config
from embargo.daemon.host import whole
from embargo.errors import ImageError
from embargo.lists.image import Image
from embargo.lists.pauses import Exempt
from embargo.lists.policy import Switchboard
from embargo.records import RecordError
from embargo.report import Report

IMAGE, REPORT = "policy.img", "report.json"
KEEP = 5  # generations on disk; they are small, and the one before must be there for a rollback


@dataclass(frozen=True, slots=True)
class Generation:
    """A compiled policy, mapped, with its settings. `fd` is the image's, for other processes."""

    number: int
    settings: Config
    image: Image
    board: Switchboard
    report: Report
    fd: int
    exempt: tuple[Exempt, ...] = ()  # clients with a switchboard of their own, see `pauses`

    @property
    def compiled_board(self) -> Switchboard:
        """What the configuration asks for, whatever is paused."""
        return self.report.switchboard

    def again(self) -> "Generation":
        """The same one with a descriptor of its own. OSError."""
        return replace(self, fd=os.dup(self.fd))

    def close(self) -> None:
        """Give the descriptor back; the mapping lives as long as the image."""
        os.close(self.fd)


class Store:
    def __init__(self, state_dir: str) -> None:
        self._root = f"{state_dir}/generations"
        self._link = f"{self._root}/current"

    def prepare(self) -> None:
        """Make the directory and remove what a crash left half done. OSError when that cannot be."""
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
        """An empty directory to compile into."""
        path = f"{self._root}/.new"
        shutil.rmtree(path, ignore_errors=True)
        os.mkdir(path, 0o750)
        return path

    def number(self, workshop: str) -> int:
        """Give what was compiled its number."""
        number = max(self._numbers(), default=0) + 1
        os.rename(workshop, self._path(number))
        whole.sync(self._root)
        return number

    def again(self, number: int, report: Report) -> int:
        """A new number for the image of another one, with a report of its own. OSError when that cannot be."""
        path = self.workshop()
        os.link(f"{self._path(number)}/{IMAGE}", f"{path}/{IMAGE}")
        whole.fill(whole.new(f"{path}/{REPORT}"), json.dumps(records.encode(report)).encode())
        return self.number(path)

    def load(self, number: int, settings: Config, verified: str = "") -> Generation:
        """Map and verify a generation. ImageError when it is damaged or gone.

        `verified`: the digest of the image that the compiler has verified and written just now. A second time would keep a
        processor from those who answer queries, 25 ms for a million names.
        """
        path = self._path(number)
        try:
            with open(f"{path}/{REPORT}", "rb") as file:
                report = records.decode(Report, json.load(file))
            fd = os.open(f"{path}/{IMAGE}", os.O_RDONLY | os.O_CLOEXEC)
            try:
                image = Image(memoryview(mmap.mmap(fd, 0, prot=mmap.PROT_READ)), trusted=bool(verified))
                if verified and image.digest != verified:
                    raise ImageError("it is not what the compiler has written")
                board = report.switchboard
                if len(board.actions) != len(image.classes):
                    raise ImageError("the report belongs to another image")
            except BaseException:
                os.close(fd)
                raise
        except (OSError, ValueError, RecordError) as error:
            raise ImageError(f"generation {number} cannot be used: {error}") from None
        return Generation(number, settings, image, board, report, fd)

    def before(self, number: int) -> int:
        """The newest generation on disk that is older; 0 without one."""
        return max((each for each in self._numbers() if each < number), default=0)

    def current(self) -> int:
        """The number in force when the agent last ran; 0 without one."""
        with contextlib.suppress(OSError, ValueError):
            return int(os.readlink(self._link))
        return 0

    def make_current(self, number: int) -> None:
        temporary = f"{self._root}/.current"
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        os.symlink(f"{number:06}", temporary)
        os.replace(temporary, self._link)
        whole.sync(self._root)

    def prune(self) -> None:
        """Remove all but the newest KEEP and the current one."""
        for old in self._numbers()[:-KEEP]:
            if old != self.current():
                shutil.rmtree(self._path(old), ignore_errors=True)

    def discard(self, number: int) -> None:
        shutil.rmtree(self._path(number), ignore_errors=True)
