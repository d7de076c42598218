# SPDX-License-Identifier: GPL-3.0-or-later
"""What kvmft wants to know of a host, as one JSON object. Reads, and changes nothing.

    python3 - [--links] [--free PATH ...] [--mount PATH]

Given to a host's Python (3.8 or newer) on standard input, so that nothing is left there. With `--links`
only the network is looked at. What cannot be read is null; judging is left to whoever asked.
"""

import argparse
import contextlib
import ctypes
import fcntl
import json
import mmap
import os
import platform
import re
import shutil
import struct
import subprocess
import time

PAGEMAP_SCAN = 0xC0606610  # linux/fs.h, since Linux 6.7
PAGE_IS_PRESENT = 1 << 3
TIME_ERROR = 5  # adjtimex(2): the clock is not synchronised
SSH_CONNECTION = b"SSH_CONNECTION="


def text(path, default=""):
    """A file's text without the white space around it."""
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read().strip()
    except OSError:
        return default


def output(*command):
    """What a command prints; empty when it fails or is not there."""
    environment = dict(os.environ, LC_ALL="C", PATH=os.environ.get("PATH", "") + ":/usr/sbin:/sbin")
    try:
        done = subprocess.run(
            command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, timeout=20, env=environment, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.decode("utf-8", "replace") if done.returncode == 0 else ""


def parsed(*command):
    """What a command prints as JSON; empty when there is nothing."""
    try:
        return json.loads(output(*command) or "[]")
    except ValueError:
        return []


# -- network ----------------------------------------------------------------------------------------


def speed(name):
    """A link's speed in Mbit/s; null where the driver does not say."""
    value = text("/sys/class/net/%s/speed" % name)
    return int(value) if value.isdigit() and int(value) > 0 else None


def links():
    """Interfaces by name: MTU, whether up, addresses, speed, kind, what it is a port of and lies on."""
    found = {}
    for link in parsed("ip", "-json", "-details", "address", "show"):
        if not link.get("ifname"):
            continue
        found[link["ifname"]] = {
            "mtu": link.get("mtu"),
            "up": "UP" in link.get("flags", []),
            "carrier": "LOWER_UP" in link.get("flags", []),
            "addresses": [
                {"address": each["local"], "prefix": each.get("prefixlen")}
                for each in link.get("addr_info", [])
                if each.get("local")
            ],
            "speed_mbit": speed(link["ifname"]),
            "kind": link.get("linkinfo", {}).get("info_kind", ""),
            "master": link.get("master", ""),
            "parent": link.get("link", "") or "",
        }
    return found


def default_routes():
    """Interfaces that carry a default route, of any table and either family."""
    found = set()
    for family in ("-4", "-6"):
        for route in parsed("ip", "-json", family, "route", "show", "table", "all", "default"):
            if route.get("type", "unicast") != "unicast":
                continue
            for hop in [route] + route.get("nexthops", []):
                if hop.get("dev") and hop["dev"] != "lo":
                    found.add(hop["dev"])
    return sorted(found)


def connection():
    """This host's address in the SSH connection that brought us here; sudo hides it, so parents are asked."""
    pid = os.getpid()
    while pid > 1:
        try:
            with open("/proc/%d/environ" % pid, "rb") as file:
                environment = file.read().split(b"\0")
            with open("/proc/%d/stat" % pid, encoding="utf-8", errors="replace") as file:
                pid = int(file.read().rsplit(")", 1)[1].split()[1])
        except (OSError, ValueError, IndexError):
            break
        for each in environment:
            if each.startswith(SSH_CONNECTION):
                fields = each[len(SSH_CONNECTION) :].decode().split()
                return fields[2] if len(fields) == 4 else ""
    return ""


def network():
    """All of the network."""
    return {"links": links(), "default_routes": default_routes(), "connection": connection()}


# -- the host ---------------------------------------------------------------------------------------


def operating_system():
    """ID and VERSION_ID of os-release(5)."""
    values = {}
    for line in (text("/etc/os-release") or text("/usr/lib/os-release")).splitlines():
        name, __, value = line.partition("=")
        values[name] = value.strip("\"'")
    return {
        "id": values.get("ID", ""),
        "version": values.get("VERSION_ID", ""),
        "name": values.get("PRETTY_NAME", ""),
    }


def pagemap_scan():
    """Whether the kernel has PAGEMAP_SCAN, by doing it on a page of ours."""
    area = mmap.mmap(-1, mmap.PAGESIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    area[0] = 1
    here = ctypes.c_char.from_buffer(area)
    start = ctypes.addressof(here)
    vector = (ctypes.c_uint64 * 6)()
    # struct pm_scan_arg: size, flags, start, end, walk_end, vec, vec_len, max_pages and four masks
    argument = struct.pack(
        "12Q", 96, 0, start, start + mmap.PAGESIZE, 0, ctypes.addressof(vector), 2, 0, 0, 0,
        PAGE_IS_PRESENT, PAGE_IS_PRESENT,
    )  # fmt: skip
    try:
        with open("/proc/self/pagemap", "rb") as file:
            return fcntl.ioctl(file, PAGEMAP_SCAN, bytearray(argument)) == 1
    except OSError:
        return False
    finally:
        del here
        area.close()


def kernel():
    """Its release and what it lets us do."""
    scope = text("/proc/sys/kernel/yama/ptrace_scope")
    return {
        "release": platform.release(),
        "pagemap_scan": pagemap_scan(),
        "ptrace_scope": int(scope) if scope.isdigit() else 0,
    }


def cpu():
    """Model, flags of hardware virtualisation, and whether /dev/kvm is there."""
    info = text("/proc/cpuinfo")
    model = re.search(r"^model name\s*:\s*(.*)$", info, re.MULTILINE)
    flags = re.search(r"^flags\s*:\s*(.*)$", info, re.MULTILINE)
    names = set(flags.group(1).split()) if flags else set()
    return {
        "architecture": platform.machine(),
        "model": model.group(1) if model else "",
        "count": os.cpu_count(),
        "virtualization": bool(names & {"vmx", "svm"}),
        "kvm": os.access("/dev/kvm", os.R_OK | os.W_OK),
        "page_bytes": mmap.PAGESIZE,
    }


def memory_mib():
    """MemTotal."""
    found = re.search(r"^MemTotal:\s+(\d+) kB", text("/proc/meminfo"), re.MULTILINE)
    return int(found.group(1)) // 1024 if found else None


def clock():
    """The time (seconds since 1970), and whether the kernel knows it as synchronised; null when not told."""
    buffer = ctypes.create_string_buffer(256)  # struct timex with modes = 0: only read
    try:
        state = ctypes.CDLL(None).adjtimex(buffer)
    except (OSError, AttributeError):
        state = -1
    return {"time": time.time(), "synchronized": None if state < 0 else state != TIME_ERROR}


def version(*command):
    """The first version number that a command prints; null when it is not installed."""
    found = re.search(r"(\d+(?:\.\d+)+)", output(*command, "--version"))
    return found.group(1) if found else None


def versions():
    """Versions of what is installed already."""
    return {
        "qemu": version("qemu-system-x86_64"),
        "libvirt": version("libvirtd") or version("virtqemud"),
    }


def security():
    """AppArmor and SELinux, as far as they concern QEMU, and the cgroup tree."""
    abstraction = text("/etc/apparmor.d/abstractions/libvirt-qemu")
    return {
        "apparmor": text("/sys/module/apparmor/parameters/enabled") == "Y",
        "apparmor_parser": shutil.which("apparmor_parser", path="/usr/sbin:/sbin:/usr/bin:/bin") is not None,
        "apparmor_local": "local/abstractions/libvirt-qemu" in abstraction if abstraction else None,
        "selinux_enforcing": text("/sys/fs/selinux/enforce") == "1",
        "cgroup": 2 if os.path.exists("/sys/fs/cgroup/cgroup.controllers") else 1,
        "container": output("systemd-detect-virt", "--container").strip().replace("none", ""),
    }


def free(path):
    """Free and whole size in MiB of the file system on which `path` is or would be, and where it is mounted."""
    there = path
    while not os.path.exists(there) and there != "/":
        there = os.path.dirname(there) or "/"
    value = os.statvfs(there)
    mount = there
    with contextlib.suppress(OSError):
        while not os.path.ismount(mount):
            mount = os.path.dirname(mount)
    return {
        "free_mib": value.f_bavail * value.f_frsize >> 20,
        "size_mib": value.f_blocks * value.f_frsize >> 20,
        "mount": mount,
        "exists": os.path.exists(path),
    }


def mount(path):
    """What findmnt(8) says of the directory `path`; null when it does not exist."""
    rows = parsed("findmnt", "--json", "--target", path, "--output", "TARGET,FSTYPE,OPTIONS,SOURCE")
    return rows["filesystems"][-1] if rows and os.path.isdir(path) else None


def main():
    """Print what was asked for."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--links", action="store_true")
    parser.add_argument("--free", nargs="*", default=[])
    parser.add_argument("--mount", default="")
    options = parser.parse_args()
    found = network()
    if not options.links:
        found.update(
            os=operating_system(), kernel=kernel(), cpu=cpu(), memory_mib=memory_mib(), clock=clock(),
            versions=versions(), security=security(),
            hostname=platform.node(), machine_id=text("/etc/machine-id"),
            free={path: free(path) for path in options.free},
            mount=mount(options.mount) if options.mount else None,
        )  # fmt: skip
    print(json.dumps(found))


main()
