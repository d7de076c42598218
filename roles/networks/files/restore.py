# SPDX-License-Identifier: GPL-3.0-or-later
"""Put interfaces back to how they were before kvmft configured them.

    python3 - RECORD CREATED ...

RECORD is JSON: what `probe.py --links` said of each interface before, by name. CREATED are the bonds,
VLANs and bridges that kvmft made. Prints each change as a line; none when nothing had to be done.
"""

import json
import subprocess
import sys


def ip(*arguments):
    """Run ip(8); its error is told and ends the script."""
    done = subprocess.run(["ip", *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, check=False)
    if done.returncode:
        sys.exit("ip %s: %s" % (" ".join(arguments), done.stderr.decode().strip()))
    return done.stdout.decode()


def now():
    """Interfaces as they are, by name."""
    return {each["ifname"]: each for each in json.loads(ip("-json", "address", "show") or "[]") if "ifname" in each}


def addresses(link):
    """IPv4 addresses with prefix."""
    return {"%s/%s" % (each["local"], each["prefixlen"]) for each in link["addr_info"] if each["family"] == "inet"}


def change(*arguments):
    """A change, told."""
    ip(*arguments)
    print("ip " + " ".join(arguments))


def restore(name, before):
    """One interface that is there: address, MTU and whether it is up."""
    link = now()[name]
    old = {"%s/%s" % (each["address"], each["prefix"]) for each in before["addresses"] if ":" not in each["address"]}
    if link.get("master", "") != before["master"]:
        change("link", "set", name, *(["master", before["master"]] if before["master"] else ["nomaster"]))
    for each in sorted(addresses(link) - old):
        change("address", "del", each, "dev", name)
    if link["mtu"] != before["mtu"]:
        change("link", "set", name, "mtu", str(before["mtu"]))
    if ("UP" in link["flags"]) != before["up"]:
        change("link", "set", name, "up" if before["up"] else "down")
    for each in sorted(old - addresses(now()[name])):
        change("address", "add", each, "dev", name)


def main():
    """Take away what was made, then put back what was there."""
    record, created = json.loads(sys.argv[1]), sys.argv[2:]
    for name in created:
        if name in now() and name not in record:
            change("link", "del", name)
    for name, before in sorted(record.items()):
        if name in now():
            restore(name, before)


main()
