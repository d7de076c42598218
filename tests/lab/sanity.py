"""`ansible-test sanity` over the files of this work tree, as over an installed collection."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from tests.lab.lab import ROOT

WHERE = ROOT / "build" / "sanity" / "ansible_collections" / "kvmft" / "core"
GIT = ("git", "-c", "safe.directory=*")
CACHE = Path("~/.ansible/test/cache").expanduser()
"""Where ansible-test looks for what it would download (its _util/target/setup/requirements.py)."""
PIP_VERSION = (
    "from types import SimpleNamespace as N; "
    "from ansible_test._internal.python_requirements import get_venv_packages; "
    "print(get_venv_packages(N(version='{python}'))['pip'])"
)
STARTER = """\
\"\"\"Installs pip into an empty environment, as get-pip.py does, from a wheel that is here already.\"\"\"
import sys

WHEEL = {wheel!r}
sys.path.insert(0, WHEEL)

from pip._internal.cli.main import main

sys.exit(main(["install", "--no-index", "--no-deps", "--disable-pip-version-check", WHEEL]))
"""


def python_version() -> str:
    """The version of this Python as ansible-test takes it, such as 3.11."""
    return f"{sys.version_info.major}.{sys.version_info.minor}"


def seed_pip(cache: Path = CACHE) -> Path:
    """See that ansible-test finds a pip of the version that it wants; the starter script.

    It would download a script from a server of its own, which is reached from few networks. Here the
    wheel comes from the package index that pip is set up for. A script that is there is left alone.
    """
    command = [sys.executable, "-c", PIP_VERSION.format(python=python_version())]
    version = subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
    starter = cache / f"get_pip_{version.replace('.', '_')}.py"
    if starter.exists():
        return starter
    cache.mkdir(parents=True, exist_ok=True)
    subprocess.run(
        [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check",
         "--no-deps", "--only-binary=:all:", "--dest", str(cache), f"pip=={version}"], check=True,
    )  # fmt: skip
    text = STARTER.format(wheel=str(next(cache.glob(f"pip-{version}-*.whl"))))
    made = starter.with_suffix(f".{os.getpid()}")
    made.write_text(text)
    made.replace(starter)  # whole or not at all: another run may be looking for it
    return starter


def copy_tree(target: Path = WHERE) -> None:
    """The files that git has or would take, in a folder named as ansible-test wants it."""
    shutil.rmtree(target, ignore_errors=True)
    listed = subprocess.run(
        [*GIT, "ls-files", "-z", "--cached", "--others", "--exclude-standard", "--deduplicate"],
        cwd=ROOT, check=True, capture_output=True, text=True,
    ).stdout  # fmt: skip
    for name in filter(None, listed.split("\0")):
        source = ROOT / name
        if source.is_symlink() or source.exists():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, target / name, follow_symlinks=False)
    # ansible-test takes the files of a git repository, and this one is its own.
    for command in (["init", "--quiet"], ["add", "--all"]):
        subprocess.run([*GIT, *command], cwd=target, check=True)


def main() -> int:
    """Run all sanity tests; 0 when there are no findings."""
    seed_pip()
    copy_tree()
    return subprocess.run(
        [str(Path(sys.executable).parent / "ansible-test"), "sanity", "--local", "--requirements",
         "--color", "no", "--python", python_version()], cwd=WHERE, check=False,
    ).returncode  # fmt: skip
