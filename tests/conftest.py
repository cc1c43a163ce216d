"""What every test run shares: seeds are fixed, and no test sees the machine's own configuration."""

from __future__ import annotations

import itertools
import os
import signal
from collections.abc import Callable, Iterator

import pytest
from hypothesis import HealthCheck, settings

from holdfast.servers import LocalServer
from tests.servers import need

settings.register_profile(
    "everyday", derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.register_profile("deep", parent=settings.get_profile("everyday"), max_examples=5000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "everyday"))


@pytest.fixture(autouse=True, scope="session")
def _no_foreign_settings() -> None:
    """A variable of whoever runs the tests must not point them at a real store."""
    for name in [name for name in os.environ if name.startswith("HOLDFAST_")]:
        if name != "HOLDFAST_SERVERS":  # where the servers of tests are kept
            del os.environ[name]


@pytest.fixture(autouse=True, scope="session")
def _interrupts_arrive() -> None:
    """What a shell starts in the background ignores SIGINT, and so would all that tests start."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], LocalServer]]:
    """Give a function that gives the running S3 server of a name in `holdfast.servers.KINDS`, one for the session."""
    running: dict[str, LocalServer] = {}

    def start(name: str) -> LocalServer:
        need(name)
        if name not in running:
            server = LocalServer(name, tmp_path_factory.mktemp(name))
            server.start()
            running[name] = server
        return running[name]

    yield start
    for server in running.values():
        server.stop()


_prefixes = itertools.count(1)


@pytest.fixture
def prefix() -> str:
    """Give a prefix in a shared bucket that no other test has."""
    return f"test-{os.getpid()}-{next(_prefixes)}"
