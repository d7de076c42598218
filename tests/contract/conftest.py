"""Both arbiters, one etcd process for all tests that leave it as it is."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.contract.backends import Backend, make

NAMES = ("etcd", "file")


@pytest.fixture(scope="module", params=NAMES)
def backend(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Backend]:
    """An arbiter that the tests of a module share; each test has VMs of its own in it."""
    made = make(request.param, tmp_path_factory.mktemp(request.param))
    yield made
    made.stop()


@pytest.fixture(params=NAMES)
def own(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Backend]:
    """An arbiter of the test's own, for what would disturb others."""
    made = make(request.param, tmp_path)
    yield made
    made.stop()
