"""The collection with the newest ansible-core, whose Python is newer than Debian 12's: on Debian 13, in a container.

    python -m tests.lab.newest     (in the container: makes the environment and runs the tests)
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

from tests.lab import container
from tests.lab.lab import ROOT

ANSIBLE = "2.21.5"
PYTHON = "3.13"
"""That of Debian 13, whose other packages the environment sees."""
RELEASE = "13"
FOLDER = ROOT / "build" / "newest"
TESTS = ("tests/unit/plugins", "tests/unit/roles", "--ignore=tests/unit/plugins/test_drill_page.py")
"""What runs modules, plugins, roles and playbooks. The page is looked at by a browser, whatever made it."""


def main() -> int:
    """Fetch ansible-core, and run the tests with it; exit code."""
    wheels = FOLDER / f"wheels-{ANSIBLE}"
    if not wheels.exists():
        fetched = wheels.with_suffix(".part")
        shutil.rmtree(fetched, ignore_errors=True)
        subprocess.run(
            [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--only-binary=:all:",
             "--python-version", PYTHON, "--dest", str(fetched), f"ansible-core=={ANSIBLE}"], check=True,
        )  # fmt: skip
        fetched.replace(wheels)
    return container.run(RELEASE, "python3", "-m", "tests.lab.newest")


def inside() -> int:
    """In the container, which has no network: the tests' exit code."""
    venv = FOLDER / "venv"
    shutil.rmtree(venv, ignore_errors=True)
    subprocess.run([sys.executable, "-m", "venv", "--system-site-packages", str(venv)], check=True)
    subprocess.run([str(venv / "bin" / "pip"), "install", "--quiet", "--no-index", "--find-links",
                    str(FOLDER / f"wheels-{ANSIBLE}"), f"ansible-core=={ANSIBLE}"], check=True)  # fmt: skip
    programs = venv / "bin"
    environment = {**os.environ, "PATH": f"{programs}:{os.environ['PATH']}", "ANSIBLE_LOCALHOST_WARNING": "False",
                   "ANSIBLE_COLLECTIONS_PATH": str(ROOT / "build" / "collections")}  # fmt: skip
    print(subprocess.run([str(programs / "ansible-playbook"), "--version"], check=True, capture_output=True,
                         text=True).stdout.splitlines()[0], flush=True)  # fmt: skip
    return subprocess.run([str(programs / "python"), "-m", "pytest", "-q", "-p", "no:cacheprovider", *TESTS],
                          env=environment, check=False).returncode  # fmt: skip


if __name__ == "__main__":
    sys.exit(inside())
