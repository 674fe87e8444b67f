"""One pair of gateways for all ways, and what holds before and after each of them."""

import time
from collections.abc import Iterator

import pytest

from support import bypasses
from support.agent import running
from support.bypasses import APPS, FREE4, FREE6, GATEWAY, Gateways, network


@pytest.fixture(scope="package")
def gateways(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateways]:
    root = tmp_path_factory.mktemp("bypasses")
    (root / "state").mkdir()
    (root / "state/learnt.jsonl").write_text(f'{{"version":1,"saved":{time.time()}}}\n')
    sections = bypasses.sections(root, 8400)
    with (
        network() as without,
        network() as with_,
        running(root, prefix=with_.prefix("gateway"), apps=APPS, **sections) as agent,
    ):
        agent.port = 53
        yield Gateways(without, with_, agent)


@pytest.fixture(autouse=True)
def control(gateways: Gateways, request: pytest.FixtureRequest) -> Iterator[None]:
    """What is allowed works after every way that was tried."""
    number = request.node.name.split("_")[1]
    bypasses.of_row(int(number) if number.isdecimal() else 0)
    yield
    for qtype, address in (("A", FREE4), ("AAAA", FREE6)):
        for server in GATEWAY:
            assert gateways.with_.dig("client", f"@{server}", "free.test", qtype).answers == (f"{qtype} {address}",)
        assert gateways.with_.reach("client", address) == "open"
