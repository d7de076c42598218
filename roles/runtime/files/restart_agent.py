# SPDX-License-Identifier: GPL-3.0-or-later
"""Restart the agent, and wait until the VMs that were protected are protected again.

    restart_agent.py SECONDS [SOCKET]

Guests run on meanwhile. A host on which the agent does not run yet is left to who starts it first. Exit code 1, with the
reason on standard error, when the agent does not answer or a VM is not protected after SECONDS.
"""

import json
import socket
import subprocess
import sys
import time

SOCKET = "/run/kvmft/control.sock"
PATIENCE = 5.0


def vms(path):
    """Per VM that the agent knows, its state; None when the agent does not answer."""
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(PATIENCE)
            connection.connect(path)
            connection.sendall(b'{"op": "vm_list", "args": {}}\n')
            with connection.makefile("rb") as replies:
                answer = json.loads(replies.readline())
        return {each["vm"]: each for each in answer["result"]}
    except (OSError, ValueError, KeyError, TypeError):
        return None


def lacking(before, now):
    """What of `before` is not protected any more, as a sentence; empty when all is well."""
    if now is None:
        return "the agent does not answer; see `journalctl -u kvmft-agent`"
    gone = [
        "{} is {} ({})".format(name, now[name]["state"], now[name]["reason"])
        if name in now
        else "{} is not known any more".format(name)
        for name in sorted(before)
        if now.get(name, {}).get("state") != "protected"
    ]
    return "; ".join(gone)


def main(arguments):
    """Restart and wait."""
    seconds, path = float(arguments[0]), arguments[1] if len(arguments) > 1 else SOCKET
    before = [name for name, vm in (vms(path) or {}).items() if vm["state"] == "protected"]
    subprocess.run(["systemctl", "daemon-reload"], check=True)
    subprocess.run(["systemctl", "restart", "kvmft-agent"], check=True)
    until = time.monotonic() + seconds
    while True:
        missing = lacking(before, vms(path))
        if not missing:
            print("protected again: {}".format(", ".join(sorted(before)) or "no VM was"))
            return 0
        if time.monotonic() > until:
            print("After {:.0f} s {}.".format(seconds, missing), file=sys.stderr)
            return 1
        time.sleep(0.5)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
