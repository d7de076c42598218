"""The verbs of `./dev`, after it has set everything up."""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

from tests.lab import container, images, net, newest, sanity
from tests.lab.lab import ROOT, Lab

WHEELS = ROOT / "roles" / "runtime" / "files"
STAGES = ("lint", "sanity", "unit", "release", "sim", "contract", "pair", "lab", "molecule")
ON_REQUEST = ("newest",)
"""Stages that run when they are named."""
CONTROLLER_TESTS = "tests/unit/plugins"
BROWSER_TESTS = "tests/unit/plugins/test_drill_page.py"
SIDE_BY_SIDE = ("-n", "2", "--dist", "loadfile")
"""For stages whose tests wait more than they compute: two files at a time, each with labs of its own."""
RELEASES = tuple(images.SUITES)


def build_wheel() -> Path:
    """The runtime's wheel, in the role that installs it: what a release carries."""
    done = subprocess.run([sys.executable, str(WHEELS / "build_wheel.py"), str(ROOT / "runtime"), str(WHEELS)],
                          check=True, capture_output=True, text=True)  # fmt: skip
    made = Path(done.stdout.strip())
    for old in WHEELS.glob("kvmft-*.whl"):
        if old != made:
            old.unlink()
    return made


def playbook(lab: Lab, name: str, *arguments: str, quiet: bool = False) -> str:
    """Run a playbook of the collection against the lab; its output."""
    command = lab.inside(
        str(Path(sys.executable).parent / "ansible-playbook"), "-i", str(lab.inventory),
        str(ROOT / "playbooks" / f"{name}.yml"), *arguments,
    )  # fmt: skip
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                               env={"ANSIBLE_PIPELINING": "true", **os.environ})  # fmt: skip
    assert process.stdout is not None
    lines = []
    for line in process.stdout:
        lines.append(line)
        if not quiet:
            print(line, end="", flush=True)
    if process.wait():
        raise RuntimeError(f"playbook {name} failed:\n{''.join(lines[-40:])}")
    return "".join(lines)


def site(lab: Lab, quiet: bool = False) -> str:
    """Run site.yml, which builds the wheel."""
    return playbook(lab, "site", quiet=quiet)


def lint() -> int:
    """ruff, mypy and ansible-lint; the number of them that complain."""
    bin_ = Path(sys.executable).parent
    collection = ROOT / "build" / "collections" / "ansible_collections" / "kvmft" / "core"
    commands = [
        [str(bin_ / "ruff"), "check", "runtime/src", "tests", "plugins", "molecule"],
        [str(bin_ / "mypy"), "runtime/src/kvmft"],
        [str(bin_ / "ansible-lint"), "--offline", "-q", "--profile", "production", "roles",
         "playbooks", "molecule"],
    ]  # fmt: skip
    failed = 0
    for command in commands:
        where = collection if "ansible-lint" in command[0] else ROOT
        print(f"== {Path(command[0]).name}", flush=True)
        failed += subprocess.run(command, cwd=where, check=False).returncode != 0
    return failed


def pytest(*arguments: str) -> int:
    """Run pytest in the project's root; its exit code."""
    return subprocess.run([sys.executable, "-m", "pytest", "-q", "--durations=10", *arguments], cwd=ROOT,
                          check=False).returncode  # fmt: skip


def run_stage(stage: str, release: str | None) -> int:
    """Run one stage; its exit code. With `release`, on that Debian: `lab` and `molecule` with such servers, and
    what needs one machine in a container of it, unless this machine is one. What tests the collection's
    sources and its release runs here."""
    if stage == "lint":
        return lint()
    if stage == "sanity":
        return sanity.main()
    if stage == "newest":
        return newest.main()
    if stage in ("lab", "molecule") and release is not None:
        os.environ["KVMFT_RELEASE"] = release
    if stage == "molecule":
        from tests.lab import molecule

        return molecule.stage()
    if release is None or stage in ("lab", "release") or release == container.own_release():
        return pytest(*(SIDE_BY_SIDE if stage in ("unit", "release", "contract", "pair", "lab") else ()), f"tests/{stage}")
    command = ["python3", "-m", "pytest", "-q", "-p", "no:cacheprovider", f"tests/{stage}"]
    if stage == "unit":
        # Debian 12's own Ansible (2.14) is too old to be a controller, and playwright is no Debian
        # package: those tests run here.
        here = CONTROLLER_TESTS if release == "12" else BROWSER_TESTS
        if code := pytest(here):
            return code
        command.append(f"--ignore={here}")
    return container.run(release, *command)


def test(only: str | None, release: str | None = None) -> int:
    """All stages, quick ones first; the first failing one ends it."""
    if only is not None and only not in STAGES + ON_REQUEST:
        print(f"dev: there is no stage {only!r}; stages are {', '.join(STAGES + ON_REQUEST)}.", file=sys.stderr)
        return 2
    for stage in STAGES if only is None else (only,):
        begun = time.monotonic()
        print(f"=== {stage}", flush=True)
        code = run_stage(stage, release)
        print(f"=== {stage}: {'failed' if code else 'passed'} in {time.monotonic() - begun:.0f} s",
              flush=True)  # fmt: skip
        if code:
            return 1
    return 0


def _lab(options: argparse.Namespace) -> int:
    lab = Lab(release=getattr(options, "release", None))
    if options.action == "up":
        lab.up()
        print(f"The lab {lab.name} is up. Inventory: {lab.inventory}")
    elif options.action == "down":
        lab.down()
    elif options.action == "status":
        for host, state in lab.status().items():
            print(f"{host:10s} {state}")
    elif options.action in ("ssh", "power-off", "power-on"):
        if options.action == "ssh":
            command = [*lab.ssh_command(options.host), *options.command]
            return subprocess.run(command, check=False).returncode
        (lab.power_off if options.action == "power-off" else lab.power_on)(options.host)
    return 0


def _clean() -> int:
    for base in Path("/var/lib/kvmft-lab").glob("*"):
        Lab(base.name).down()
    for name in ("build", ".pytest_cache", ".mypy_cache", ".ruff_cache", ".hypothesis"):
        shutil.rmtree(ROOT / name, ignore_errors=True)
    for wheel in WHEELS.glob("kvmft-*.whl"):
        wheel.unlink()
    with contextlib.suppress(OSError):
        shutil.rmtree(ROOT / ".venv")
    return 0


def _lab_arguments(lab: argparse.ArgumentParser) -> None:
    actions = lab.add_subparsers(dest="action", required=True)
    for name in ("up", "down", "status"):
        actions.add_parser(name).add_argument("--release", choices=RELEASES)
    for name in ("ssh", "power-off", "power-on"):
        action = actions.add_parser(name)
        action.add_argument("host", choices=tuple(net.HOSTS))
        if name == "ssh":
            action.add_argument("command", nargs=argparse.REMAINDER)


def arguments() -> argparse.ArgumentParser:
    """The command line of `./dev`."""
    parser = argparse.ArgumentParser(prog="dev")
    verbs = parser.add_subparsers(dest="verb", required=True)
    demo = verbs.add_parser("demo")
    demo.add_argument("--kills", type=int, default=1)
    demo.add_argument("--release", choices=RELEASES, default=os.environ.get("KVMFT_RELEASE", "12"))
    tests = verbs.add_parser("test")
    tests.add_argument("--only")
    tests.add_argument("--release", choices=RELEASES, default=os.environ.get("KVMFT_RELEASE"))
    for name in ("lint", "wheel", "docs", "release", "clean"):
        verbs.add_parser(name)
    verbs.add_parser("molecule").add_argument("arguments", nargs=argparse.REMAINDER)
    bench = verbs.add_parser("bench")
    bench.add_argument("--parts", default="engine,lab,failover")
    bench.add_argument("--seconds", type=float, default=10.0)
    bench.add_argument("--runs", type=int, default=20, help="faults of each kind")
    bench.add_argument("--docs", action="store_true", help="write the tables into docs/performance.md")
    bench.add_argument("--release", choices=RELEASES, default="12")
    faults = verbs.add_parser("faults")
    faults.add_argument("--runs", type=int, default=1)
    faults.add_argument("--rows")
    faults.add_argument("--guest", choices=("quick", "postgres"), default="quick")
    faults.add_argument("--long", action="store_true")
    faults.add_argument("--keep", action="store_true", help="leave the lab up")
    faults.add_argument("--more", action="store_true", help="add to the runs of build/faults.json")
    faults.add_argument("--release", choices=("12", "13"), default="12")
    switch = verbs.add_parser("switch")
    switch.add_argument("--runs", type=int, default=20)
    switch.add_argument("--release", choices=RELEASES, default="12")
    verbs.add_parser("site")
    _lab_arguments(verbs.add_parser("lab"))
    return parser


def main() -> int:
    """Run one verb."""
    options = arguments().parse_args()
    match options.verb:
        case "demo":
            from tests.lab import demo as demo_module

            return demo_module.main(options.kills, options.release)
        case "test":
            return test(options.only, options.release)
        case "lint":
            return 1 if lint() else 0
        case "wheel":
            print(build_wheel())
        case "docs":
            from tests.lab import docs

            print(docs.build())
        case "release":
            from tests.lab import release

            print(release.build(ROOT / "build" / "release"))
        case "molecule":
            from tests.lab import molecule

            return molecule.run_molecule(*options.arguments)
        case "site":
            site(Lab())
        case "bench":
            from tests.lab import bench

            return bench.main(options.parts, options.seconds, options.runs, options.docs, options.release)
        case "faults":
            from tests.lab.faults import campaign

            return campaign.main(options.runs, options.rows, options.guest, options.long,
                                 options.release, options.keep, options.more)  # fmt: skip
        case "switch":
            from tests.lab import switch

            return switch.main(options.runs, options.release)
        case "lab":
            return _lab(options)
        case "clean":
            return _clean()
    return 0


if __name__ == "__main__":
    sys.exit(main())
