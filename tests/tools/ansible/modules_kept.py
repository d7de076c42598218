"""A callback of Ansible's that keeps its own modules put together from one run to the next.

For each module that a run uses, Ansible first puts an archive together of it and of all that it imports, which costs a
third of a second of processor time; it keeps the archives for one run. Tests make some hundred runs. What is kept are
modules of ansible-core alone, by its version: those of collections are what is tested, and may be other ones each time.
"""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

from ansible import constants
from ansible.plugins.callback import CallbackBase
from ansible.release import __version__

DOCUMENTATION = """
name: modules_kept
type: aggregate
short_description: keeps modules of ansible-core put together from one run to the next
description: For tests.
"""

OWN = "ansible.modules."


class CallbackModule(CallbackBase):  # type: ignore[misc]
    """Copies what is kept into the run's folder at its beginning, and what is new out of it at its end."""

    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "aggregate"
    CALLBACK_NAME = "modules_kept"
    CALLBACK_NEEDS_ENABLED = True

    def __init__(self) -> None:
        super().__init__()
        python = f"{sys.version_info.major}.{sys.version_info.minor}"
        self._kept = Path(os.environ["KVMFT_MODULES_KEPT"]) / f"{__version__}-{python}"
        self._run = Path(constants.DEFAULT_LOCAL_TMP) / "ansiballz_cache"

    def v2_playbook_on_start(self, playbook: object) -> None:
        self._copy(self._kept, self._run)

    def v2_playbook_on_stats(self, stats: object) -> None:
        self._copy(self._run, self._kept)

    @staticmethod
    def _copy(source: Path, target: Path) -> None:
        target.mkdir(parents=True, exist_ok=True)
        for path in source.glob(f"{OWN}*-none"):
            made = target / path.name
            if not made.exists():
                part = target / f"{path.name}.{os.getpid()}"
                shutil.copyfile(path, part)  # the folders may be on different file systems
                part.replace(made)
