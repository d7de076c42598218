"""A throw-away copy of this machine in which a role may change whatever it likes.

An overlay of `/` whose upper half lies in memory, in a mount and a network namespace of its own: nothing
that happens there is seen outside, and what lies in the upper half afterwards is what was changed. There
is no systemd in it; `systemctl` notes what is started and enabled, and carries out ExecStart, ExecStop
and mount units itself.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

from .conftest import ROOT

TOOLS = Path(sys.executable).parent
SYSTEMCTL = r"""#!/usr/bin/python3
import os, re, subprocess, sys
STATE = "/run/sandbox-systemd"
os.makedirs(STATE, exist_ok=True)
words = [each for each in sys.argv[1:] if not each.startswith("-")]
verb, units = (words or [""])[0], words[1:]
def find(unit):
    for folder in ("/etc/systemd/system", "/lib/systemd/system", "/usr/lib/systemd/system"):
        if os.path.exists(folder + "/" + unit):
            return folder + "/" + unit
def named(unit):
    return unit if "." in unit else unit + ".service"
def has(kind, unit):
    return os.path.exists("%s/%s.%s" % (STATE, unit, kind))
def note(kind, unit, on):
    path = "%s/%s.%s" % (STATE, unit, kind)
    open(path, "w").close() if on else (os.path.exists(path) and os.remove(path))
def act(unit, key):
    text = open(find(unit)).read()
    values = dict(re.findall(r"^(What|Where|Type)=(.*)$", text, re.M))
    if unit.endswith(".mount"):
        if key == "ExecStart":
            os.makedirs(values["Where"], exist_ok=True)
            # The name of the device is what counts; what is behind it is memory.
            return subprocess.call(["mount", "-t", "tmpfs", "-o", "size=4096M", values["What"], values["Where"]])
        return subprocess.call(["umount", values["Where"]])
    for line in re.findall("^%s=(.*kvmft.*)$" % key, text, re.M):
        if subprocess.call(line.split()):
            return 1
    return 0
code = 0
for unit in map(named, units):
    active, enabled = has("active", unit), has("enabled", unit)
    if verb == "show":
        print("Id=%s\nLoadState=%s\nActiveState=%s\nUnitFileState=%s" % (
            unit, "loaded" if find(unit) else "not-found", "active" if active else "inactive",
            "enabled" if enabled else "disabled"))
    elif verb == "is-active":
        print("active" if active else "inactive"); code = 0 if active else 3
    elif verb == "is-enabled":
        print("enabled" if enabled else "disabled"); code = 0 if enabled else 1
    elif verb in ("enable", "disable"):
        note("enabled", unit, verb == "enable")
    elif verb in ("start", "stop", "restart"):
        if active and verb != "start":
            code = act(unit, "ExecStop") or code
        if verb != "stop" and not (active and verb == "start"):
            code = act(unit, "ExecStart") or code
        note("active", unit, verb != "stop" and code == 0)
sys.exit(code)
"""
SETUP = r"""
set -e
mount --make-rprivate /
mkdir -p {base}/layers
mount -t tmpfs -o size=2G none {base}/layers
mkdir {base}/layers/upper {base}/layers/work {base}/root
mount -t overlay -o lowerdir=/,upperdir={base}/layers/upper,workdir={base}/layers/work overlay {base}/root
root={base}/root
for path in {shared}; do mkdir -p $root$path; mount --rbind $path $root$path; done
mount -t proc none $root/proc
mount -t tmpfs none $root/run
mount -t tmpfs -o mode=0755 none $root/dev
for node in null zero full random urandom tty ptmx; do
    touch $root/dev/$node; mount --bind /dev/$node $root/dev/$node
done
mkdir $root/dev/shm $root/dev/pts; mount -t tmpfs none $root/dev/shm; mount -t devpts -o ptmxmode=0666 none $root/dev/pts
ln -s /proc/self/fd $root/dev/fd
mount -t sysfs none $root/sys
ip link set lo up
echo ready
exec sleep infinity
"""


class Sandbox:
    """The copy, alive until `close`."""

    def __init__(self, directory: Path) -> None:
        self.directory, self.base = directory, directory / "sandbox"
        self.base.mkdir()
        shared = {str(ROOT), str(directory)}
        if (TOOLS.parent / "pyvenv.cfg").exists():
            # A virtual environment may lie elsewhere; what is of the system is copied, and never shared.
            shared |= {os.path.realpath(TOOLS.parent), str(TOOLS.parent)}
        script = SETUP.format(base=self.base, shared=" ".join(sorted(shared)))
        self._holder = subprocess.Popen(["unshare", "--mount", "--net", "sh", "-c", script],
                                        stdout=subprocess.PIPE, text=True)  # fmt: skip
        assert self._holder.stdout is not None
        assert self._holder.stdout.readline() == "ready\n", "the sandbox could not be made"
        self.write("/usr/bin/systemctl", SYSTEMCTL, 0o755)

    def close(self) -> None:
        """Take it away, with everything in it."""
        self._holder.kill()
        self._holder.wait()

    def shell(self, command: str, check: bool = True, stdin: str | None = None) -> str:
        """Run a shell command in it; its output."""
        done = subprocess.run(
            ["nsenter", "--target", str(self._holder.pid), "--mount", "--net", "chroot", str(self.base / "root"),
             "sh", "-c", command],
            capture_output=True, text=True, input=stdin, timeout=240, check=False, cwd="/",
            env={**os.environ, "LC_ALL": "C.UTF-8", "PATH": f"{TOOLS}:/usr/sbin:/usr/bin:/sbin:/bin",
                 "ANSIBLE_HOME": str(self.directory / "home"), "ANSIBLE_NOCOLOR": "1",
                 "ANSIBLE_COLLECTIONS_PATH": str(self.directory / "collections"),
                 "ANSIBLE_LOCALHOST_WARNING": "False", "ANSIBLE_PIPELINING": "true"},
        )  # fmt: skip
        assert done.returncode == 0 or not check, done.stdout + done.stderr
        self.code = done.returncode
        return done.stdout + ("" if check else done.stderr)

    def write(self, path: str, text: str, mode: int = 0o644) -> None:
        """Put a file there."""
        self.shell(f"mkdir -p {os.path.dirname(path)}; rm -f {path}; cat >{path}; chmod {mode:o} {path}", stdin=text)

    def read(self, path: str) -> str:
        """A file's text."""
        return self.shell(f"cat {path}")

    def exists(self, path: str) -> bool:
        """Whether there is something."""
        return self.shell(f"test -e {path} && echo yes || true") == "yes\n"

    def files(self) -> dict[str, str]:
        """Everything that may be changed, with mode, owner and contents, to be compared."""
        lines = self.shell(
            "find /etc /var/lib/kvmft /srv -printf '%p\\t%M %U:%G %y\\n' 2>/dev/null; "
            "find /etc /var/lib/kvmft /srv -type f -exec md5sum {} + 2>/dev/null || true"
        ).splitlines()
        found: dict[str, str] = {}
        for line in lines:
            path, __, what = line.partition("\t")
            if what:
                found[path] = what
            else:
                digest, __, path = line.partition("  ")
                found[path] = f"{found.get(path, '')} {digest}"
        return found

    def role(self, name: str, *arguments: str, **variables: Any) -> tuple[int, str]:
        """Run a role on it; (number of changed tasks or -1 when it failed, output in one line)."""
        collections = self.directory / "collections" / "ansible_collections" / "kvmft"
        if not collections.exists():
            collections.mkdir(parents=True)
            (collections / "core").symlink_to(ROOT)
        play = [{"hosts": "kvmft_hosts", "gather_facts": False, "roles": [f"kvmft.core.{name}"]}]
        hosts = {"here": {"ansible_connection": "local", "ansible_python_interpreter": "/usr/bin/python3", **variables}}
        (self.directory / "play.json").write_text(json.dumps(play))
        (self.directory / "inventory.json").write_text(json.dumps({"kvmft_hosts": {"hosts": hosts}}))
        output = self.shell(
            f"cd {self.directory} && ansible-playbook -i inventory.json play.json {' '.join(arguments)}", check=False
        )
        found = re.search(r"changed=(\d+)", output)
        return (int(found[1]) if self.code == 0 and found else -1), " ".join(output.split())
