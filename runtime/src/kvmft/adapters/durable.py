"""Writing small files so that they are there, whole, after a power loss."""

from __future__ import annotations

import os


def write_durably(path: str, data: bytes, mode: int = 0o600) -> None:
    """Replace the file at `path` by `data`: fsync the file, rename, fsync the directory."""
    temporary = f"{path}.new"
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, mode)
    try:
        while data:
            data = data[os.write(descriptor, data) :]
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    os.replace(temporary, path)
    sync_directory(os.path.dirname(path))


def remove_durably(path: str) -> None:
    """Remove the file at `path`, if there is one, for good."""
    try:
        os.unlink(path)
    except FileNotFoundError:
        return
    sync_directory(os.path.dirname(path))


def sync_directory(path: str) -> None:
    """fsync a directory, so that renames and removals in it are durable."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
