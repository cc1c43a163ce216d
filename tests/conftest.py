"""What every test run shares: seeds are fixed, and no test sees the machine's own configuration."""

import os

import pytest
from hypothesis import HealthCheck, settings

settings.register_profile(
    "everyday", derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.register_profile("deep", parent=settings.get_profile("everyday"), max_examples=5000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "everyday"))


@pytest.fixture(autouse=True, scope="session")
def _no_foreign_settings() -> None:
    """A variable of whoever runs the tests must not point them at a real store."""
    for name in [name for name in os.environ if name.startswith("HOLDFAST_")]:
        del os.environ[name]
