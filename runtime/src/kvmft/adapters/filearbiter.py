"""A directory that all hosts mount as the arbiter: one immutable file per change of a record.

    DIRECTORY/kvmft/CLUSTER/identity        made once, when the arbiter is set up; never by a claim
    DIRECTORY/kvmft/CLUSTER/vm/UUID/gen-N   change N of this VM's record; N is never used again

The value is in the file with the highest N, after a first line with random bits of its own. A swap
reads it, compares, writes a file under a unique temporary name, syncs it, and gives it the name
gen-(N+1) with link(2).

Why it is a compare-and-swap:

* link() refuses a name that exists, at the server, in one step. rename() replaces silently, and
  locks are lost with their server or their lease: neither is used.
* gen-(N+1) is only ever linked by one who read gen-N as the highest and found its base in it, and
  files do not change. So who gets the name gen-(N+1) first has replaced exactly its base.
* Old files are removed: change N + KEEP or a later one removes gen-N. A link that was held back (a
  paused process, a request under way in the network) may therefore succeed on a name that was free
  again. It wins nothing: after each link the directory is read again, and only while the highest is
  below N + KEEP, so that gen-N cannot have been removed yet, the link has won. Otherwise the answer
  is "refused, and the value is the highest". Nobody else takes such a late file for the value either,
  because higher ones exist and the highest is never removed. Should a true winner be that late
  itself, it is told the same; the rules around this (core/arbitration.py) draw the conclusion that
  they draw from a first answer that was lost.
* After an unclear link, the first line under the new name and the number of links of the temporary
  file say whether it happened. Where they say no, it may happen later: the answer is
  Unclear, and the same is asked again.
* Taking a record away (turning FT off) is a change like any other: its file says `removed`. An
  unlink would be no compare-and-swap and would free the name gen-1 for a creation of the past.

What is told was synced first, file and directory, so that it is still there after the server lost
power. Nothing here waits or retries: a hung mount blocks the caller, which is a thread.
"""

from __future__ import annotations

import errno
import json
import os
import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from kvmft.adapters.mounts import Mount, mount_of, unfit
from kvmft.core.arbitration import Reply
from kvmft.core.position import Position
from kvmft.errors import KvmftError
from kvmft.ports import Health, Unclear

KEEP = 8
"""Generation files that stay: enough for a slow reader to finish what it began."""

_FORMAT = re.compile(rb"kvmft 1 [0-9a-f]{32} (value|removed)\n(.*)", re.DOTALL)
_GENERATION = re.compile(r"gen-([1-9][0-9]{0,17})")
_TEMPORARY = re.compile(r"[.]new-([1-9][0-9]{0,17})-[0-9a-f]{16}")
_LOOKS = 20
"""How often a reader looks when files vanish under its hands."""


class Files:
    """The file operations of this arbiter, each a single system call; tests put faults here."""

    def open_directory(self, name: str, at: int | None) -> int:
        return os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=at)

    def make_directory(self, name: str, at: int) -> None:
        os.mkdir(name, 0o700, dir_fd=at)

    def names(self, directory: int) -> list[str]:
        return os.listdir(directory)

    def read(self, name: str, at: int) -> bytes:
        descriptor = os.open(name, os.O_RDONLY | os.O_CLOEXEC, dir_fd=at)
        with open(descriptor, "rb") as file:
            return file.read(1 << 16)

    def write(self, name: str, at: int, data: bytes) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        descriptor = os.open(name, flags, 0o600, dir_fd=at)
        try:
            while data:
                data = data[os.write(descriptor, data) :]
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def link(self, old: str, new: str, at: int) -> None:
        os.link(old, new, src_dir_fd=at, dst_dir_fd=at, follow_symlinks=False)

    def links(self, name: str, at: int) -> int:
        return os.stat(name, dir_fd=at, follow_symlinks=False).st_nlink

    def unlink(self, name: str, at: int) -> None:
        os.unlink(name, dir_fd=at)

    def sync(self, directory: int) -> None:
        os.fsync(directory)


@dataclass(frozen=True)
class Head:
    """The newest change: its number (0: none yet) and the value (None: there is no record)."""

    number: int
    value: bytes | None


class FileArbiter:
    """The arbiter in `directory`. All calls block as long as the mount does."""

    def __init__(self, directory: str, files: Files | None = None) -> None:
        self.directory = directory
        self._files = files or Files()

    # -- the swap -----------------------------------------------------------------------------------

    def swap(self, key: str, base: bytes | None, new: bytes | None, attempt: int = 0) -> Reply:
        """See `kvmft.ports.Arbiter`; `attempt` means nothing here."""
        cluster, folder = _split(key)
        try:
            with self._cluster(cluster) as root:
                arbiter = self._identity(root)
                return self._swap(root, folder, arbiter, base, new)
        except OSError as error:
            raise Unclear(f"{self.directory}: {_why(error)}") from error

    def _swap(
        self, root: int, folder: str, arbiter: str, base: bytes | None, new: bytes | None
    ) -> Reply:
        head = self._head(root, folder)
        if head.value != base:
            return Reply(False, head.value, Position(arbiter, head.number))
        if head.number == 0:
            self._make_folder(root, folder)
        data = _encode(new)
        number = head.number + 1
        with self._opened(root, folder) as directory:
            won = self._link_as(directory, number, data)
        # Looked at again, through a new descriptor, whatever link said: see the top of this file.
        head = self._head(root, folder)
        if won and number <= head.number < number + KEEP:
            self._prune(root, folder, head.number)
            return Reply(True, None, Position(arbiter, number))
        if head.number < number:
            raise Unclear(f"{self.directory}: the mount shows a directory of the past")
        return Reply(False, head.value, Position(arbiter, head.number))

    def _link_as(self, directory: int, number: int, data: bytes) -> bool:
        """True when a new file with `data` got the number; false when another one has it."""
        files, name = self._files, f".new-{number}-{secrets.token_hex(8)}"
        try:
            files.write(name, directory, data)
            problem: OSError | None = None
            try:
                files.link(name, f"gen-{number}", directory)
            except OSError as error:
                problem = error
            # What has the number says whose it is, by the random bits in its first line. So an answer
            # that was lost, or was for a repetition of the request, is no riddle.
            content = self._content(directory, number)
            if content is not None:
                return content == data
            if self._links(name, directory) == 2:
                return True  # won, and so long ago that the file was removed since
            raise problem or OSError(errno.ESTALE, "a link that was made cannot be seen")
        finally:
            self._quietly_unlink(name, directory)

    def _content(self, directory: int, number: int) -> bytes | None:
        try:
            return self._files.read(f"gen-{number}", directory)
        except FileNotFoundError:
            return None

    def _links(self, name: str, directory: int) -> int:
        try:
            return self._files.links(name, directory)
        except FileNotFoundError:
            return 0  # a winner has tidied up

    # -- reading ------------------------------------------------------------------------------------

    def _head(self, root: int, folder: str) -> Head:
        """The newest change, durable. Two looks in a row must agree: a listing that was interrupted
        while others wrote and removed may lack what was there all the time."""
        before = self._look(root, folder)
        for __ in range(_LOOKS):
            now = self._look(root, folder)
            if now is not None and now == before:
                return now
            before = now
        raise Unclear(f"{self.directory}: the records change faster than they can be read")

    def _look(self, root: int, folder: str) -> Head | None:
        files = self._files
        try:
            with self._opened(root, folder) as directory:
                number = max(_numbers(files.names(directory)), default=0)
                content = files.read(f"gen-{number}", directory) if number else None
                files.sync(directory)
        except FileNotFoundError:
            # Either there never was a folder, or the file was removed under our hands.
            return Head(0, None) if not self._exists(root, folder) else None
        return Head(number, None if content is None else _decode(content))

    def _exists(self, root: int, folder: str) -> bool:
        try:
            with self._opened(root, folder):
                return True
        except FileNotFoundError:
            return False

    @contextmanager
    def _cluster(self, cluster: str) -> Iterator[int]:
        """The cluster's folder. All that follows goes through this descriptor, so that a mount
        that comes or goes meanwhile cannot make two directories look like one."""
        try:
            root = self._files.open_directory(f"{self.directory}/kvmft/{cluster}", None)
        except FileNotFoundError as error:
            raise Unclear(
                f"{self.directory} has no folder kvmft/{cluster}: it is not mounted, or was not set up"
            ) from error
        try:
            yield root
        finally:
            os.close(root)

    @contextmanager
    def _opened(self, root: int, folder: str) -> Iterator[int]:
        # Opened anew for each look: an NFS client asks the server again at an open.
        descriptor = self._files.open_directory(folder, root)
        try:
            yield descriptor
        finally:
            os.close(descriptor)

    def _identity(self, root: int) -> str:
        try:
            return f"directory {json.loads(self._files.read('identity', root))['id']}"
        except (ValueError, KeyError, TypeError, FileNotFoundError) as error:
            raise Unclear(f"{self.directory}: the arbiter's identity is missing or damaged") from error

    # -- keeping it small ----------------------------------------------------------------------------

    def _make_folder(self, root: int, folder: str) -> None:
        """Make the folder of a VM, and be sure that a loss of power does not take it away."""
        path = ""
        for part in folder.split("/"):
            with self._opened(root, path or ".") as parent:
                try:
                    self._files.make_directory(part, parent)
                except FileExistsError:
                    pass
                self._files.sync(parent)
            path = f"{path}/{part}" if path else part

    def _prune(self, root: int, folder: str, number: int) -> None:
        """Remove old generations, and what killed claimants left that aimed at them. Whoever is so
        late that its own file went away gets an error from link, and asks again."""
        with self._opened(root, folder) as directory:
            for name in self._files.names(directory):
                match = _GENERATION.fullmatch(name) or _TEMPORARY.fullmatch(name)
                if match is not None and int(match[1]) <= number - KEEP:
                    self._quietly_unlink(name, directory)

    def _quietly_unlink(self, name: str, directory: int) -> None:
        try:
            self._files.unlink(name, directory)
        except OSError:
            pass

    # -- probing ------------------------------------------------------------------------------------

    def probe(self, cluster: str, host: str) -> Health:
        """Prove by doing: the directory is mounted and set up, writes are synced, and link refuses
        a name that exists. Leaves a file with this host's name for the others to see."""
        mount = self.check_mount()
        try:
            with self._cluster(cluster) as root:
                arbiter = self._identity(root)
                self._canary(root)
                others = self._leave_name(root, host)
                revisions = self._revisions(root)
        except Unclear as error:
            raise KvmftError(
                "arbiter_not_set_up", f"The arbiter cannot be used: {error}.",
                "Mount the directory on this host; if it is new, run kvmft.core.site.",
            ) from error  # fmt: skip
        except OSError as error:
            raise _named(self.directory, error) from error
        seen = f"used by {', '.join(others)} too" if others else "no other host has been here yet"
        detail = f"{self.directory} ({mount.kind} of {mount.source}), {seen}"
        return Health(detail, arbiter, revisions)

    def check_mount(self) -> Mount:
        """Where the directory is mounted; KvmftError when it is not, or in an unfit way."""
        mount = mount_of(self.directory)
        problem = unfit(mount, self.directory)
        if problem is not None:
            raise problem
        return mount

    def _canary(self, root: int) -> None:
        files, names = self._files, [f"canary-{secrets.token_hex(8)}" for __ in range(3)]
        first, second, target = names
        self._make_folder(root, "canary")
        with self._opened(root, "canary") as directory:
            try:
                files.write(first, directory, b"first")
                files.write(second, directory, b"second")
                files.link(first, target, directory)
                files.sync(directory)
                refused = False
                try:
                    files.link(second, target, directory)
                except FileExistsError:
                    refused = True
                whole = files.read(target, directory) == b"first"
                counted = files.links(first, directory) == 2
            finally:
                for name in names:
                    self._quietly_unlink(name, directory)
        if not (refused and whole and counted):
            raise KvmftError(
                "arbiter_canary",
                f"In {self.directory} a second link replaced the first, or links are not counted.",
                "This file system cannot arbitrate; use NFS 4.1 or newer, or etcd.",
            )

    def _leave_name(self, root: int, host: str) -> list[str]:
        """Leave this host's name; the names of the others."""
        self._make_folder(root, "hosts")
        with self._opened(root, "hosts") as directory:
            names = self._files.names(directory)
            if host not in names:
                try:
                    self._files.write(host, directory, b"")
                except FileExistsError:
                    pass
        return sorted(name for name in names if name != host)

    def _revisions(self, root: int) -> dict[str, int]:
        try:
            with self._opened(root, "vm") as directory:
                folders = self._files.names(directory)
        except FileNotFoundError:
            return {}
        found = {}
        for name in folders:
            try:
                found[name] = self._head(root, f"vm/{name}").number
            except Unclear:
                continue  # it changes at this moment; the next probe sees it
        return found

    # -- setting up ----------------------------------------------------------------------------------

    def set_up(self, cluster: str) -> tuple[bool, str]:
        """Make the cluster's folder and its identity, once: (changed, identity).

        Two hosts that do it at once get the same identity, because it is linked too.
        """
        files = self._files
        try:
            with self._rooted() as root:
                self._make_folder(root, f"kvmft/{cluster}")
            with self._cluster(cluster) as root:
                changed = False
                if "identity" not in files.names(root):
                    name = f"identity-{secrets.token_hex(8)}"
                    made = {"v": 1, "id": secrets.token_hex(16)}
                    try:
                        files.write(name, root, json.dumps(made).encode())
                        files.link(name, "identity", root)
                        changed = True
                    except FileExistsError:
                        pass
                    finally:
                        self._quietly_unlink(name, root)
                    files.sync(root)
                return changed, self._identity(root)
        except OSError as error:
            raise _named(self.directory, error) from error

    @contextmanager
    def _rooted(self) -> Iterator[int]:
        root = self._files.open_directory(self.directory, None)
        try:
            yield root
        finally:
            os.close(root)


def _split(key: str) -> tuple[str, str]:
    """`/kvmft/CLUSTER/vm/UUID` -> CLUSTER, `vm/UUID`; nothing that could lead elsewhere."""
    match = re.fullmatch(r"/kvmft/([A-Za-z0-9_-]+)/(vm/[A-Za-z0-9_-]+)", key)
    if match is None:
        raise KvmftError("arbiter_key", f"{key!r} is no key of a VM's record.", "")
    return match[1], match[2]


def _encode(value: bytes | None) -> bytes:
    """A file's content; each has random bits, so that equal values make different files."""
    kind = b"removed" if value is None else b"value"
    return b"kvmft 1 %s %s\n%s" % (secrets.token_hex(16).encode(), kind, value or b"")


def _decode(content: bytes) -> bytes | None:
    """The value, None when it was taken away. What is damaged comes as it is: it is no record, and
    the rules then call for a person."""
    match = _FORMAT.fullmatch(content)
    if match is None:
        return content
    return None if match[1] == b"removed" else match[2]


def _numbers(names: list[str]) -> list[int]:
    return [int(match[1]) for name in names if (match := _GENERATION.fullmatch(name))]


def _why(error: OSError) -> str:
    """What went wrong, in words a person can act on."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return "the file system is full, so nothing was changed"
    return str(error.strerror or error)


def _named(directory: str, error: OSError) -> KvmftError:
    """The one clear error for a probe that could not do what it had to."""
    remedies = {
        errno.ENOSPC: ("arbiter_full", "Free space there; a change needs a few kilobytes."),
        errno.EDQUOT: ("arbiter_full", "Raise the quota there; a change needs a few kilobytes."),
        errno.EROFS: ("arbiter_read_only", "Export and mount it read-write."),
        errno.EACCES: ("arbiter_denied", "Let root of the hosts write there (NFS: no_root_squash, or "
                       "a directory of the anonymous user)."),
        errno.EPERM: ("arbiter_no_links", "Use a file system with hard links: NFS 4.1 or newer."),
        errno.EOPNOTSUPP: ("arbiter_no_links", "Use a file system with hard links: NFS 4.1 or newer."),
        errno.ENOENT: ("arbiter_not_set_up", "Make and mount it on every host."),
        errno.ENOTDIR: ("arbiter_not_set_up", "Give the path of a directory."),
    }  # fmt: skip
    code, remedy = remedies.get(
        error.errno or 0, ("arbiter_unreachable", "Check the mount and its server.")
    )
    return KvmftError(code, f"The arbiter's directory {directory} cannot be used: {_why(error)}.", remedy)
