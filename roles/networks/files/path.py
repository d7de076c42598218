# SPDX-License-Identifier: GPL-3.0-or-later
"""Whether packets of full size reach the peers, as one JSON list.

    python3 - PURPOSE,MTU,OWN,PEER_NAME,PEER ...

Each result has `full` (an unfragmented packet of MTU bytes was answered) and `small` (one of 84 bytes was).
"""

import json
import subprocess
import sys

HEADERS = 28  # IPv4 and ICMP; what ping(8) counts is the rest


def answered(own, peer, size):
    """Whether a packet of `size` bytes, which may not be cut up, is answered."""
    done = subprocess.run(
        ["ping", "-4", "-n", "-q", "-M", "do", "-s", str(size - HEADERS), "-c", "3", "-i", "0.3", "-W", "1",
         "-I", own, peer],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, timeout=30, check=False,
    )  # fmt: skip
    return done.returncode == 0


def main():
    """Print one result per argument."""
    found = []
    for each in sys.argv[1:]:
        purpose, mtu, own, name, peer = each.split(",")
        full = answered(own, peer, int(mtu))
        found.append({
            "purpose": purpose, "mtu": int(mtu), "own": own, "name": name, "peer": peer, "full": full,
            "small": full or answered(own, peer, 84),
        })  # fmt: skip
    print(json.dumps(found))


main()
