"""`kvmft bench`: what the protection of a VM costs on this very pair, as a bundle of evidence."""

from __future__ import annotations

import argparse
import json
import re
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

from kvmft.cli.client import ask

SECONDS = (1.0, 3600.0)


def add_verb(verbs: Any) -> None:
    """Add the verb to the command's parser."""
    text = "measure the protection of a VM in use, and write the figures down"
    bench: argparse.ArgumentParser = verbs.add_parser("bench", help=text, description=text)
    bench.add_argument("vm", help="the VM's name in libvirt")
    bench.add_argument("--seconds", type=_seconds, default=60.0, help="how long its epochs are watched (default: 60)")
    bench.add_argument("--ping", metavar="ADDRESS[:PORT]", help="also how long the guest takes to answer this host: "
                       "to ICMP echo, or to a TCP connect where a port is given")  # fmt: skip
    bench.add_argument("--log", action="store_true", help="also what the FT log can carry: takes the FT network for 5 s")
    bench.add_argument("--switch", action="store_true",
                       help="also a planned switchover and the one back: moves the VM, twice")  # fmt: skip
    bench.add_argument("--out", type=Path, metavar="PATH",
                       help="a new folder, or with .tar.gz a new archive (default: kvmft-bench-VM-TIME here)")  # fmt: skip
    bench.add_argument("--json", action="store_true", help="print JSON")


def _seconds(text: str) -> float:
    value = float(text)
    if not SECONDS[0] <= value <= SECONDS[1]:
        raise argparse.ArgumentTypeError(f"from {SECONDS[0]:.0f} to {SECONDS[1]:.0f} seconds")
    return value


def bench(options: argparse.Namespace) -> int:
    """`kvmft bench`."""
    from kvmft.report import bundle, evidence, pings

    stamp = time.strftime("%Y%m%d-%H%M%S")
    out = options.out or Path(f"kvmft-bench-{re.sub(r'[^A-Za-z0-9_.-]', '_', options.vm)}-{stamp}")
    bundle.check(out)
    ping = pings.parse(options.ping) if options.ping else None
    found = evidence.measure(partial(ask, options.socket),
                             evidence.Wanted(options.vm, options.seconds, ping, options.log, options.switch),
                             lambda text: print(f"Measures {text} ...", file=sys.stderr, flush=True))  # fmt: skip
    bundle.write(out, found)
    figures = {name: value for name, value in found.items() if name != "events"}
    print(json.dumps({**figures, "bundle": str(out)}) if options.json else f"{bundle.text(found)}\nWritten to {out}.")
    return 0
