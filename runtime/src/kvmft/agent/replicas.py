"""Which image files on this host are a VM's replicas, so that nobody else's file is overwritten."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable

from kvmft.adapters.durable import write_durably

NAME = "replicas.json"


class Replicas:
    """The replicas of one VM, remembered in its state folder also while FT is off.

    A file is known by path, device and inode: one that somebody put at the same path is not ours.
    """

    def __init__(self, directory: str) -> None:
        self._path = os.path.join(directory, NAME)

    def _known(self) -> dict[str, list[int]]:
        try:
            with open(self._path, encoding="utf-8") as file:
                known = json.load(file)
        except (FileNotFoundError, ValueError):
            return {}
        return known if isinstance(known, dict) else {}

    def owns(self, path: str) -> bool:
        """True when the file at `path` is a replica that we made."""
        try:
            found = os.stat(path)
        except FileNotFoundError:
            return False
        return self._known().get(path) == [found.st_dev, found.st_ino]

    def keep(self, paths: Iterable[str]) -> None:
        """Remember the files at `paths`, durably."""
        known = self._known()
        for path in paths:
            found = os.stat(path)
            known[path] = [found.st_dev, found.st_ino]
        write_durably(self._path, json.dumps(known).encode(), 0o640)
