"""The verbs of `./dev` that need the lab: `python -m tests.lab.cli VERB ...`."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys

from tests.lab import net
from tests.lab.lab import Lab

EXIT_USAGE = 2


def _lab(arguments: argparse.Namespace) -> int:
    lab = Lab(arguments.lab, arguments.release)
    if arguments.action == "up":
        lab.up()
        print(usage(lab))
    elif arguments.action == "down":
        lab.down()
    elif arguments.action == "status":
        for host, state in lab.status().items():
            print(f"{host}\t{state}\t{lab.address(host)}")
    elif arguments.action == "power-off":
        lab.power_off(arguments.host)
    elif arguments.action == "power-on":
        if not lab.is_on(arguments.host):
            lab.power_on(arguments.host)
    elif arguments.action == "ssh":
        command = lab.ssh_command(arguments.host)
        os.execvp(command[0], [*command, *arguments.command])
    elif arguments.action == "playbook":
        return subprocess.run(
            lab.playbook_command(*arguments.command), check=False, env=lab.ansible_environment()
        ).returncode
    elif arguments.action == "guest":
        from tests.lab import guests

        guest = {"pg": guests.POSTGRES, "quick": guests.QUICK}[arguments.kind]
        guests.start(lab, arguments.host, guest, own_monitor=arguments.own_monitor)
        seconds = guests.wait_up(lab, guest)
        print(f"{guest.name} answers on {guest.address}:{guest.port} after {seconds:.1f} s")
    return 0


def usage(lab: Lab) -> str:
    """What to type next, for a person who has just brought the lab up."""
    return (
        f"Lab {lab.name} is up: {', '.join(net.HOSTS)} (Debian {lab.release}).\n"
        f"  ./dev lab ssh node-a                 a shell on a server\n"
        f"  ./dev lab playbook playbooks/site.yml    Ansible over SSH, inventory {lab.inventory}\n"
        f"  ./dev lab guest pg node-a            start the PostgreSQL guest db1 (or: quick)\n"
        f"  ./dev lab power-off node-a           a power cut; power-on brings it back"
    )


def _demo(arguments: argparse.Namespace) -> int:
    from tests.lab import demo

    return demo.main(Lab(arguments.lab, arguments.release), kills=arguments.kills,
                     keep=arguments.keep)  # fmt: skip


def _test(arguments: argparse.Namespace) -> int:
    from tests.lab import stages

    return stages.run(arguments.only, Lab(arguments.lab, arguments.release))


def _clean(arguments: argparse.Namespace) -> int:
    from tests.lab import stages

    return stages.clean(Lab(arguments.lab, arguments.release))


def _parser() -> argparse.ArgumentParser:
    from tests.lab.stages import STAGES

    parser = argparse.ArgumentParser(prog="./dev", description="kvmft: demo, tests and lab")
    parser.add_argument("--lab", default=os.environ.get("KVMFT_LAB", "kvmft"), help="lab's name")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")

    def verb(name: str, text: str, function: object) -> argparse.ArgumentParser:
        sub = verbs.add_parser(name, help=text, description=text)
        sub.add_argument("--release", choices=("12", "13"), help="Debian release of the servers",
                         default=os.environ.get("KVMFT_RELEASE", "12"))  # fmt: skip
        sub.set_defaults(function=function)
        return sub

    demo = verb("demo", "protect a VM with a database, kill its server, check the data", _demo)
    demo.add_argument("--kills", type=int, default=1, help="power cuts in a row (default 1)")
    demo.add_argument("--keep", action="store_true", help="leave the lab up afterwards")
    test = verb("test", "lint, unit, simulation and end-to-end tests", _test)
    test.add_argument("--only", choices=STAGES, action="append", help="run this stage alone")
    lint = verb("lint", "ruff, mypy and ansible-lint", _test)
    lint.set_defaults(only=["lint"])
    sim = verb("sim", "the core under simulated faults", _test)
    sim.set_defaults(only=["sim"])
    bench = verb("bench", "measure pauses and gaps in the lab", _test)
    bench.set_defaults(only=["bench"])
    verb("clean", "remove labs, the virtual environment, build results and caches", _clean)

    lab = verb("lab", "servers as system containers", _lab)
    actions = lab.add_subparsers(dest="action", required=True, metavar="ACTION")
    actions.add_parser("up", help="make and boot the servers").add_argument(
        "--release", choices=("12", "13"), default=argparse.SUPPRESS
    )
    actions.add_parser("down", help="take everything away")
    actions.add_parser("status", help="which servers are on")
    for name, text in (("ssh", "run a command or a shell on a server"),
                       ("power-off", "cut a server's power"),
                       ("power-on", "give a server power again")):  # fmt: skip
        sub = actions.add_parser(name, help=text)
        sub.add_argument("host", choices=tuple(net.HOSTS))
        if name == "ssh":
            sub.add_argument("command", nargs=argparse.REMAINDER)
    playbook = actions.add_parser("playbook", help="run ansible-playbook against the lab")
    playbook.add_argument("command", nargs=argparse.REMAINDER)
    guest = actions.add_parser("guest", help="define and start a guest on a server")
    guest.add_argument("kind", choices=("pg", "quick"))
    guest.add_argument("host", choices=("node-a", "node-b"))
    guest.add_argument("--own-monitor", action="store_true", help="with a monitor socket of its own")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run one verb; its exit status."""
    arguments = _parser().parse_args(argv)
    try:
        return int(arguments.function(arguments))
    except (RuntimeError, subprocess.CalledProcessError) as error:
        print(f"dev: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
