"""A lab for the end-to-end tests: brought up and set up once per run, taken away afterwards."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tests.lab import cli, guests
from tests.lab.lab import Lab

if "PYTEST_XDIST_WORKER" in os.environ:
    # Two lanes, each with labs of its own: ci becomes ci0 and ci1.
    os.environ["KVMFT_LAB"] = os.environ.get("KVMFT_LAB", "test") + os.environ["PYTEST_XDIST_WORKER"].removeprefix("gw")


FIRST = ("test_guests", "test_roles", "test_spare", "test_operations", "test_protect")
"""The longest files: the stage has two workers that take file after file, and a long last one would be waited for."""
LAST = "test_uninstall"
"""It takes everything from the lab's servers."""


def pytest_configure(config: pytest.Config) -> None:
    """Files keep their order; pytest-xdist would put those with the most tests first."""
    config.option.loadscopereorder = False


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files first, and what takes everything away last."""

    def place(item: pytest.Item) -> int:
        name = item.path.stem
        return FIRST.index(name) if name in FIRST else len(FIRST) + (name == LAST)

    items.sort(key=place)


@pytest.fixture(scope="session")
def lab() -> Iterator[Lab]:
    """Servers on which site.yml has run. KVMFT_KEEP=1 leaves them up for a look."""
    made = Lab(os.environ.get("KVMFT_LAB", "test"), os.environ.get("KVMFT_RELEASE") or "12")
    made.down()
    try:
        made.up()
        cli.site(made, quiet=True)
        yield made
    finally:
        if "KVMFT_KEEP" not in os.environ:
            made.down()


@pytest.fixture(scope="session")
def quick(lab: Lab) -> guests.Guest:
    """The busybox guest, running unprotected on node-a, started by plain virsh."""
    guests.start(lab, "node-a", guests.QUICK)
    guests.wait_up(lab, guests.QUICK)
    return guests.QUICK
