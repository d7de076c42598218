"""`python -m kvmft.cli.arbiter`: what the roles need to set up a `file` arbiter.

    init DIRECTORY CLUSTER          set it up, once for all hosts
    show DIRECTORY CLUSTER TOKEN    leave TOKEN there and list the tokens that all hosts left

Both print one JSON object. `show` is how hosts prove that they look into the same directory: each
leaves its own random token, and each must then see those of all others.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys

from kvmft.adapters.durable import write_durably
from kvmft.adapters.filearbiter import FileArbiter
from kvmft.errors import KvmftError

TOKENS = "tokens"
PATTERN = r"[A-Za-z0-9._-]{1,200}"


def tokens_of(directory: str, cluster: str, token: str) -> list[str]:
    """Leave `token` (none when it is empty) and return all tokens, sorted."""
    folder = os.path.join(directory, "kvmft", cluster, TOKENS)
    os.makedirs(folder, mode=0o700, exist_ok=True)
    if token:
        host = token.partition("=")[0]
        write_durably(os.path.join(folder, host), token.encode())
    found = []
    for name in sorted(os.listdir(folder)):
        if re.fullmatch(PATTERN, name) and not name.endswith(".new"):
            with open(os.path.join(folder, name), encoding="utf-8") as file:
                found.append(file.read())
    return found


def main(arguments: list[str] | None = None) -> int:
    """0, or 1 with the error on standard error."""
    parser = argparse.ArgumentParser(prog="kvmft.cli.arbiter", description=__doc__)
    parser.add_argument("verb", choices=("init", "show"))
    parser.add_argument("directory")
    parser.add_argument("cluster")
    parser.add_argument("token", nargs="?", default="", help="HOST=RANDOM")
    options = parser.parse_args(arguments)
    arbiter = FileArbiter(options.directory)
    try:
        if options.token and not re.fullmatch(f"{PATTERN}={PATTERN}", options.token):
            raise KvmftError("token", f"{options.token!r} is no token.", "Give HOST=RANDOM.")
        arbiter.check_mount()
        if options.verb == "init":
            changed, identity = arbiter.set_up(options.cluster)
            print(json.dumps({"changed": changed, "arbiter": identity}))
        else:
            tokens = tokens_of(options.directory, options.cluster, options.token)
            print(json.dumps({"tokens": tokens}))
    except (KvmftError, OSError) as error:
        print(f"kvmft: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
