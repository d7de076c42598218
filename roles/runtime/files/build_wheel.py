# SPDX-License-Identifier: GPL-3.0-or-later
"""Build the runtime's wheel with the standard library alone.

    build_wheel.py SOURCE FOLDER

SOURCE is the folder with pyproject.toml and src/. The wheel's path is printed. The same sources give
the same bytes (fixed times, sorted names), so a checksum tells whether anything changed. The format is
that of the "Binary distribution format" specification of PyPA (PEP 427), version 1.0.
"""

from __future__ import annotations

import base64
import hashlib
import os
import re
import sys
import tomllib
import zipfile
from pathlib import Path

TIME = (1980, 1, 1, 0, 0, 0)  # the earliest that a zip file can hold


def contents(source: Path) -> tuple[str, dict[str, bytes]]:
    """The wheel's file name and its members, RECORD included. ValueError without a version."""
    with (source / "pyproject.toml").open("rb") as file:
        project = tomllib.load(file)["project"]
    name = project["name"]
    init = (source / "src" / name / "__init__.py").read_text(encoding="utf-8")
    found = re.search(r"""^__version__(?:: \w+)? = ["']([^"']+)["']""", init, re.MULTILINE)
    if found is None:
        raise ValueError(f"{source}/src/{name}/__init__.py does not set __version__.")
    version, info = found[1], f"{name}-{found[1]}.dist-info"
    members = {
        path.relative_to(source / "src").as_posix(): path.read_bytes()
        for path in sorted((source / "src" / name).rglob("*"))
        if path.is_file() and "__pycache__" not in path.parts and path.suffix != ".pyc"
    }
    metadata = (
        f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
        f"Summary: {project['description']}\nRequires-Python: {project['requires-python']}\n"
    )
    scripts = "".join(f"{key} = {value}\n" for key, value in sorted(project["scripts"].items()))
    members[f"{info}/METADATA"] = metadata.encode()
    members[f"{info}/WHEEL"] = (
        b"Wheel-Version: 1.0\nGenerator: kvmft\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    )
    members[f"{info}/entry_points.txt"] = f"[console_scripts]\n{scripts}".encode()
    record = "".join(f"{path},{_digest(data)},{len(data)}\n" for path, data in members.items())
    members[f"{info}/RECORD"] = f"{record}{info}/RECORD,,\n".encode()
    return f"{name}-{version}-py3-none-any.whl", members


def _digest(data: bytes) -> str:
    digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=")
    return f"sha256={digest.decode()}"


def build(source: Path, folder: Path) -> Path:
    """Write the wheel into `folder`, all of it or nothing; its path."""
    name, members = contents(source)
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / f".{name}.{os.getpid()}"
    with zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED) as archive:
        for path, data in members.items():
            entry = zipfile.ZipInfo(path, TIME)
            entry.compress_type = zipfile.ZIP_DEFLATED
            entry.external_attr = 0o644 << 16
            archive.writestr(entry, data)
    temporary.replace(folder / name)
    return folder / name


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("Usage: build_wheel.py SOURCE FOLDER")
    print(build(Path(sys.argv[1]), Path(sys.argv[2])))
