"""The collection awx.awx, for the tests of the playbook that loads the catalogue into AWX."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

from tests.lab import images

PACKAGE = "ansible==12.3.0"
"""The package of PyPI that carries awx.awx 24.6.1; nothing else of it is kept."""
INSIDE = "ansible_collections/awx/awx/"


def collections() -> Path:
    """A folder for ANSIBLE_COLLECTIONS_PATH that holds awx.awx alone; fetched once per machine."""

    def build(directory: Path) -> None:
        subprocess.run([sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest",
                        str(directory), PACKAGE], check=True)  # fmt: skip
        wheel = next(directory.glob("*.whl"))
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(directory, [name for name in archive.namelist() if name.startswith(INSIDE)])
        wheel.unlink()

    return images._cached("awx", images._key(PACKAGE), build)
