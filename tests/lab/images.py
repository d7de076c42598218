"""Root file systems of the lab's servers and images of its guests, cached by their recipes' hash."""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

CACHE = Path(os.environ.get("KVMFT_CACHE", "/var/cache/kvmft-lab"))
SUITES = {"12": "bookworm", "13": "trixie"}
SERVER_PACKAGES = (
    "systemd", "systemd-sysv", "dbus", "openssh-server", "python3", "python3-apt", "python3-venv",
    "python3-libvirt", "python3-numpy", "python3-yaml", "libvirt-daemon-system",
    "libvirt-daemon-driver-qemu", "libvirt-clients", "qemu-system-x86", "qemu-utils", "seabios",
    "ipxe-qemu", "ovmf", "nftables", "iproute2", "iputils-ping", "etcd-server", "etcd-client",
    "tcpdump", "openssl", "procps", "kmod", "ca-certificates", "strace",
)  # fmt: skip
GUEST_PACKAGES = (
    "systemd", "systemd-sysv", "dbus", "openssh-server", "postgresql", "iproute2", "procps",
    "linux-image-cloud-amd64", "initramfs-tools", "socat", "kmod", "udev",
)  # fmt: skip
QUICK_MODULES = (
    "virtio", "virtio_ring", "virtio_pci", "virtio_pci_legacy_dev", "virtio_pci_modern_dev",
    "virtio_blk", "virtio_net", "net_failover", "failover",
)  # fmt: skip
WIDE_MODULES = (
    "virtio_ring", "virtio", "virtio_pci_legacy_dev", "virtio_pci_modern_dev", "virtio_pci",
    "virtio_blk", "failover", "net_failover", "virtio_net", "scsi_common", "scsi_mod", "sd_mod",
    "cdrom", "sr_mod", "virtio_scsi", "virtio_balloon", "virtio-rng", "virtio_console", "efivarfs",
)  # fmt: skip
"""In the order in which they have to be loaded."""
TEST_PACKAGES = (
    *SERVER_PACKAGES, "python3-pytest", "python3-hypothesis", "python3-psycopg",
    "python3-prometheus-client", "python3-jsonschema", "ansible-core", "prometheus", "gcc", "libc6-dev",
    "busybox-static", "cpio", "e2fsprogs", "git",
)  # fmt: skip
"""What the stages unit, sim and pair need, all of it from Debian."""
GUEST_AGENT = Path("/usr/sbin/qemu-ga")
"""Of this machine's package qemu-guest-agent; the wide guest runs it where it has its channel."""
KEEP_SECONDS = 3 * 86400
"""An image that is made no longer stays so long after its last use."""
HERE = Path(__file__).parent
KEYRINGS = Path("/usr/share/keyrings")
GUEST_RECIPES = HERE.parent / "guest"
BUSYBOX = "#!/bin/busybox sh\n"
"""First line of the recipes *-init: their guests have busybox and no other shell."""


def mirror() -> str:
    """The Debian mirror that this machine's apt uses."""
    for path in (*Path("/etc/apt/sources.list.d").glob("*.sources"), Path("/etc/apt/sources.list")):
        if path.exists():
            found = re.search(r"^(?:URIs:\s*|deb\s+(?:\[.*?\]\s*)?)(\S+/debian)/?\s*", path.read_text(),
                              re.MULTILINE)  # fmt: skip
            if found:
                return found[1]
    return "http://deb.debian.org/debian"


def know_keys(suite: str) -> None:
    """Have the keys that sign `suite`: an older debian-archive-keyring does not know a newer Debian."""
    key = KEYRINGS / f"debian-archive-{suite}-stable.gpg"
    if key.exists():
        return
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    for command in (["apt-get", "-qq", "update"],
                    ["apt-get", "-qq", "install", "-y", "debian-archive-keyring"]):  # fmt: skip
        subprocess.run(command, check=False, env=environment, stdin=subprocess.DEVNULL)
    if not key.exists():
        raise RuntimeError(
            f"The keys that sign Debian {suite} are not on this machine ({key}). Install a newer "
            "debian-archive-keyring (Debian 12: 2023.3+deb12u2 or later)."
        )


def bootstrap(target: Path, release: str, packages: tuple[str, ...], *extra: str) -> None:
    """A Debian root file system with `packages` in the folder `target`."""
    suite = SUITES[release]
    know_keys(suite)
    signed = f"[signed-by={KEYRINGS / 'debian-archive-keyring.gpg'}]"
    sources = (
        f"deb {signed} {mirror()} {suite} main\ndeb {signed} {mirror()} {suite}-updates main\n"
        f"deb {signed} {mirror()}-security {suite}-security main\n"
    )
    with tempfile.NamedTemporaryFile("w", suffix=".list") as file:
        file.write(sources)
        file.flush()
        subprocess.run(
            ["mmdebstrap", "--mode=root", "--variant=apt", "--quiet",
             "--aptopt=APT::Install-Recommends false", "--include=" + ",".join(packages),
             *extra, suite, str(target), file.name],
            check=True, stdin=subprocess.DEVNULL,
        )  # fmt: skip


def _key(*parts: object) -> str:
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:12]


def _cached(name: str, key: str, build: object) -> Path:
    """`CACHE/name-key`, made by `build(temporary folder)` when it is not there yet."""
    path = CACHE / f"{name}-{key}"
    CACHE.mkdir(parents=True, exist_ok=True)
    with (CACHE / f".{name}.lock").open("w") as lock:
        # Two labs may be made at the same time; the second one waits for the first one's work.
        fcntl.flock(lock, fcntl.LOCK_EX)
        if path.exists():
            os.utime(path)
            return path
        for old in CACHE.glob(f"{name}-*"):
            # A lab of another checkout may be running on it.
            if time.time() - old.stat().st_mtime > KEEP_SECONDS:
                shutil.rmtree(old, ignore_errors=True)
        temporary = CACHE / f".{name}-{key}.{os.getpid()}"
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir()
        try:
            print(f"Building {name} (kept in {CACHE}) ...", flush=True)
            build(temporary)  # type: ignore[operator]
            temporary.rename(path)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    return path


SERVER_HOOK = r"""
set -e
root="$1"
chroot "$root" systemctl disable --quiet etcd.service || true
chroot "$root" systemctl mask --quiet systemd-networkd-wait-online.service \
    systemd-resolved.service systemd-timesyncd.service apt-daily.timer apt-daily-upgrade.timer \
    man-db.timer e2scrub_all.timer fstrim.timer dpkg-db-backup.timer systemd-udevd.service \
    systemd-udev-trigger.service getty@.service console-getty.service || true
rm -f "$root"/etc/ssh/ssh_host_*
chroot "$root" ssh-keygen -A >/dev/null
rm -f "$root"/etc/libvirt/qemu/networks/autostart/default.xml
mkdir -p "$root"/root/.ssh && chmod 700 "$root"/root/.ssh
rm -f "$root"/etc/resolv.conf && touch "$root"/etc/resolv.conf
"""


def server_root(release: str) -> Path:
    """The root file system that every server of the lab is an overlay of."""

    return _root(f"server-{release}", release, SERVER_PACKAGES)


def test_root(release: str) -> Path:
    """A server's root file system with what the tests of a single machine need."""
    return _root(f"tests-{release}", release, TEST_PACKAGES)


def _root(name: str, release: str, packages: tuple[str, ...]) -> Path:
    def build(directory: Path) -> None:
        hook = directory / "hook.sh"
        hook.write_text(SERVER_HOOK)
        root = directory / "root"
        bootstrap(root, release, packages, f"--customize-hook=sh {hook} \"$1\"")

    return _cached(name, _key(release, packages, SERVER_HOOK), build) / "root"


def postgres_guest() -> Path:
    """A folder with `disk.raw`, `kernel` and `initrd` of the PostgreSQL guest (Debian 12)."""
    hook_text = (GUEST_RECIPES / "postgres.sh").read_text()

    def build(directory: Path) -> None:
        root = directory / "root"
        bootstrap(
            root, "12", GUEST_PACKAGES,
            "--essential-hook=mkdir -p \"$1\"/etc/initramfs-tools/conf.d && "
            "printf 'MODULES=list\\nCOMPRESS=gzip\\n' > \"$1\"/etc/initramfs-tools/conf.d/kvmft && "
            "printf 'virtio_pci\\nvirtio_blk\\nvirtio_net\\next4\\n' > \"$1\"/etc/initramfs-tools/modules",
            f"--customize-hook=sh {GUEST_RECIPES / 'postgres.sh'} \"$1\"",
        )  # fmt: skip
        shutil.copy(next(root.glob("boot/vmlinuz-*")), directory / "kernel")
        (directory / "modules").mkdir()
        for name in QUICK_MODULES:
            for module in root.glob(f"lib/modules/**/{name}.ko*"):
                shutil.copy(module, directory / "modules" / module.name)
        shutil.copy(next(root.glob("boot/initrd.img-*")), directory / "initrd")
        disk = directory / "disk.raw"
        subprocess.run(
            ["mke2fs", "-q", "-t", "ext4", "-d", str(root), "-L", "root", str(disk), "2G"],
            check=True,
        )
        shutil.rmtree(root)

    return _cached("guest-postgres", _key(GUEST_PACKAGES, QUICK_MODULES, hook_text), build)


def quick_guest() -> Path:
    """A folder with `disk.raw`, `kernel` and `initrd` of the busybox guest."""
    kernel_of = postgres_guest()
    init = BUSYBOX + (GUEST_RECIPES / "quick-init").read_text()
    programs = ("ledger", "service")
    sources = [(GUEST_RECIPES / f"{name}.c").read_text() for name in programs]

    def build(directory: Path) -> None:
        root = directory / "root"
        for name in ("bin", "dev", "proc", "sys", "lib"):
            (root / name).mkdir(parents=True)
        shutil.copy("/bin/busybox", root / "bin" / "busybox")
        for name in programs:
            subprocess.run(["gcc", "-O2", "-static", "-o", str(root / "bin" / name),
                            str(GUEST_RECIPES / f"{name}.c")], check=True)  # fmt: skip
        for module in (kernel_of / "modules").iterdir():
            shutil.copy(module, root / "lib" / module.name)
        (root / "init").write_text(init)
        (root / "init").chmod(0o755)
        names = subprocess.run(["find", "."], cwd=root, check=True, capture_output=True).stdout
        with (directory / "initrd").open("wb") as file:
            archive = subprocess.run(["cpio", "--quiet", "-o", "-H", "newc"], cwd=root, input=names,
                                     check=True, capture_output=True).stdout  # fmt: skip
            file.write(archive)
        shutil.copy(kernel_of / "kernel", directory / "kernel")
        with (directory / "disk.raw").open("wb") as file:
            file.truncate(64 << 20)
        shutil.rmtree(root)

    return _cached("guest-quick", _key(init, sources, kernel_of.name), build)


def _extract_modules(disk: Path, names: tuple[str, ...], target: Path) -> list[str]:
    """Copy kernel modules out of an ext4 image; the files' names, in the order of `names`."""

    def debugfs(request: str) -> str:
        return subprocess.run(["debugfs", "-R", request, str(disk)], check=True,
                              capture_output=True, text=True).stdout  # fmt: skip

    release = re.search(r"/([^/]+-cloud-[^/]+)/", debugfs("ls -p /lib/modules"))
    assert release is not None, "the guest's image has no cloud kernel"
    root = f"/lib/modules/{release[1]}"
    paths = re.findall(r"^([^:\s]+):", debugfs(f"cat {root}/modules.dep"), re.MULTILINE)
    files = []
    for name in names:
        path = next(each for each in paths if Path(each).name.split(".ko")[0] == name)
        debugfs(f"dump {root}/{path} {target / Path(path).name}")
        files.append(Path(path).name)
    return files


def _copy_program(program: Path, root: Path) -> None:
    """Copy a program of this machine, and the libraries that it needs, to the same places in `root`."""
    told = subprocess.run(["ldd", str(program)], check=True, capture_output=True, text=True).stdout
    for path in [str(program), *re.findall(r"(/\S+) \(0x", told)]:
        target = root / path.lstrip("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target)


def wide_guest() -> Path:
    """A folder with `disk.raw`, `kernel` and `initrd` of the busybox guest with many drivers."""
    kernel_of = postgres_guest()
    init = BUSYBOX + (GUEST_RECIPES / "wide-init").read_text()
    programs = {name: (GUEST_RECIPES / f"{name}.c").read_text() for name in ("ledger", "shell", "order")}

    def build(directory: Path) -> None:
        root = directory / "root"
        for name in ("bin", "dev", "proc", "sys", "lib"):
            (root / name).mkdir(parents=True)
        shutil.copy("/bin/busybox", root / "bin" / "busybox")
        for name in programs:
            subprocess.run(["gcc", "-O2", "-static", "-o", str(root / "bin" / name),
                            str(GUEST_RECIPES / f"{name}.c")], check=True)  # fmt: skip
        _copy_program(GUEST_AGENT, root)
        files = _extract_modules(kernel_of / "disk.raw", WIDE_MODULES, root / "lib")
        (root / "lib" / "modules.order").write_text("".join(f"{name}\n" for name in files))
        (root / "init").write_text(init)
        (root / "init").chmod(0o755)
        names = subprocess.run(["find", "."], cwd=root, check=True, capture_output=True).stdout
        with (directory / "initrd").open("wb") as file:
            archive = subprocess.run(["cpio", "--quiet", "-o", "-H", "newc"], cwd=root, input=names,
                                     check=True, capture_output=True).stdout  # fmt: skip
            file.write(archive)
        shutil.copy(kernel_of / "kernel", directory / "kernel")
        with (directory / "disk.raw").open("wb") as file:
            file.truncate(64 << 20)
        shutil.rmtree(root)

    agent = hashlib.sha256(GUEST_AGENT.read_bytes()).hexdigest()
    return _cached("guest-wide", _key(init, programs, WIDE_MODULES, agent, kernel_of.name), build)
