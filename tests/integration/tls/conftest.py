"""An authority for each module, a certificate of it, and a resolver process whose upstreams each test chooses."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from support.secure import NAME, Authority, Pair
from support.worker import Worker


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tls")


@pytest.fixture(scope="module")
def authority(directory: Path) -> Authority:
    return Authority(directory)


@pytest.fixture(scope="module")
def pair(authority: Authority) -> Pair:
    """A certificate for the name and for the address."""
    return authority.sign("good", f"DNS:{NAME},IP:127.0.0.1")


@pytest.fixture(scope="module")
def shared() -> Iterator[Worker]:
    with Worker() as started:
        yield started.start("alipay.example")


@pytest.fixture
def asking(shared: Worker, authority: Authority) -> Callable[..., Worker]:
    """Sets the upstreams of the worker and empties its cache. A port alone is asked over TLS, by the certificate's name."""

    def ask(*servers: int | str, authorities: str | None = None) -> Worker:
        settings = {
            "allow_from": ["127.0.0.0/8", "::1/128"], "block_mode": "nxdomain", "block_ttl": 10,
            "upstream": [f"tls://127.0.0.1:{each}#{NAME}" if isinstance(each, int) else each for each in servers],
            "tls_ca": authority.own.text if authorities is None else authorities,
        }  # fmt: skip
        shared.policy("alipay.example", dns=settings | {"upstream": ["udp://127.0.0.1:1"], "tls_ca": "another"})
        shared.policy("alipay.example", dns=settings)
        return shared

    return ask
