"""The text of a ruleset is what `nft` takes, and what the netlink writer puts into the kernel, in a namespace of its own."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from embargo.firewall import listing as shown
from golden import rulesets

pytestmark = pytest.mark.root

TESTS = Path(__file__).parent.parent
CASES = list(rulesets.CASES)

#: what a fresh namespace's kernel holds after `Nftables.replace`
_WRITE = """
import subprocess, sys
from embargo.daemon.host.nftables import Nftables
from golden import rulesets
Nftables().replace(rulesets.CASES[sys.argv[1]]())
sys.exit(subprocess.run(["nft", "list", "table", "inet", "embargo"]).returncode)
"""


def alone(*command: str, text: str = "") -> str:
    """The output of a command in a fresh network namespace, which ends with it."""
    run = subprocess.run(
        ["unshare", "-n", *command], input=text, capture_output=True, text=True, cwd=TESTS, timeout=60, check=False
    )
    assert (run.returncode, run.stderr) == (0, ""), run.stderr
    return run.stdout


def loaded(case: str) -> str:
    text = readable(shown.render(rulesets.CASES[case]()))
    return alone("sh", "-c", "nft -f - && nft list table inet embargo", text=text)


def written(case: str) -> str:
    return alone(sys.executable, "-c", _WRITE, case)


def readable(text: str) -> str:
    """Without what nft lists and cannot read: the IPv4 address inside an IPv6 one, looked up among IPv4 addresses."""
    return re.sub(r"\n\t\t@nh,[^\n]*", "", text)


def listing(text: str) -> list[str]:
    """A listing without what a rendering leaves open: the sizes of hash sets, and the order of elements."""
    text = re.sub(r"\n\t\tsize \d+", "", text)
    text = re.sub(r"elements = \{ (.*?) \}", lambda found: " ".join(sorted(re.split(r",\s+", found[1]))), text, flags=re.DOTALL)
    return sorted_blocks(text)


def sorted_blocks(text: str) -> list[str]:
    """Sets, counters and chains in one order: the kernel lists each kind in the order of its making."""
    return sorted(re.split(r"\n\n|\n(?=\t(?:counter|set|map|chain) )", text.strip().removesuffix("}")))


@pytest.mark.parametrize("case", CASES)
def test_nft_takes_the_text(case: str) -> None:
    alone("nft", "-c", "-f", "-", text=readable(shown.render(rulesets.CASES[case]())))


@pytest.mark.parametrize("case", CASES)
def test_the_kernel_lists_the_same_from_the_text_and_from_the_writer(case: str) -> None:
    assert listing(readable(written(case))) == listing(loaded(case))


@pytest.mark.parametrize("case", CASES)
def test_what_the_kernel_lists_can_be_loaded_again(case: str) -> None:
    text = re.sub(
        r"\n\t\ttcp dport 80 @ih,[^\n]*", "", readable(written(case))
    )  # nft 1.1 cuts masked octets where it should not
    alone("nft", "-c", "-f", "-", text=text)
