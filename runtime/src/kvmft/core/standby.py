"""The standby's form of a domain, and the form to keep once it runs. Pure."""

from __future__ import annotations

import xml.etree.ElementTree as ET

from kvmft.core.domain import MONITOR_PREFIX, QEMU_NS, attribute, parse, writable_disks

_KEPT_BACKING = ("nosharepages", "locked", "discard")
"""Elements of <memoryBacking> that say nothing about where the memory lies."""


def standby_xml(live_xml: str, monitor: str, paths: dict[str, str]) -> str:
    """The standby's domain: the live one, with shared memory, waiting for device state.

    `paths` gives the image file here for each writable disk's target. Replicas are raw, whatever
    the primary's image is, so that committed writes go to their place as they come.
    """
    root = parse(live_xml)
    root.attrib.pop("id", None)
    for element in root.findall("seclabel"):
        root.remove(element)
    _share_memory(root)
    for disk in root.findall("devices/disk"):
        for tag in ("backingStore", "mirror"):
            for element in disk.findall(tag):
                disk.remove(element)
    for disk in writable_disks(root):
        _use_replica(disk, paths)
    for nic in root.findall("devices/interface"):
        for element in nic.findall("target"):
            nic.remove(element)
        _forget_port(nic)
    _strip_ours(root)
    _add_arguments(
        root, "-qmp", f"{MONITOR_PREFIX}{monitor},server=on,wait=off", "-incoming", "defer"
    )
    return ET.tostring(root, encoding="unicode")


def persistent_xml(standby: str) -> str:
    """The definition to keep once the standby runs: no longer waiting for an incoming state."""
    root = parse(standby)
    root.attrib.pop("id", None)
    _strip_ours(root)
    return ET.tostring(root, encoding="unicode")


def _share_memory(root: ET.Element) -> None:
    backing = root.find("memoryBacking")
    if backing is None:
        backing = ET.Element("memoryBacking")
        root.insert(3, backing)
    for element in list(backing):
        if element.tag not in _KEPT_BACKING:
            backing.remove(element)
    ET.SubElement(backing, "source", {"type": "memfd"})
    ET.SubElement(backing, "access", {"mode": "shared"})


def _use_replica(disk: ET.Element, paths: dict[str, str]) -> None:
    path = paths.get(attribute(disk, "target", "dev"))
    source, driver = disk.find("source"), disk.find("driver")
    if path is not None and source is not None:
        disk.set("type", "file")
        source.attrib.clear()
        source.set("file", path)
        for element in list(source):
            source.remove(element)
    if driver is None:
        driver = ET.Element("driver", {"name": "qemu"})
        disk.insert(0, driver)
    driver.set("type", "raw")
    for element in driver.findall("metadata_cache"):  # only qcow2 has one
        driver.remove(element)


def _forget_port(nic: ET.Element) -> None:
    """Of a libvirt network, keep the name; port and bridge are those of the primary's host."""
    source = nic.find("source")
    if nic.get("type") == "network" and source is not None:
        for name in set(source.attrib) - {"network", "portgroup"}:
            source.attrib.pop(name)


def _strip_ours(root: ET.Element) -> None:
    line = root.find(f"{{{QEMU_NS}}}commandline")
    if line is None:
        return
    kept: list[ET.Element] = []
    for element in list(line):
        value = element.get("value", "")
        if value == "defer" or value.startswith(MONITOR_PREFIX):
            if kept and kept[-1].get("value") in ("-incoming", "-qmp"):
                kept.pop()
            continue
        kept.append(element)
    for element in list(line):
        line.remove(element)
    line.extend(kept)
    if not kept:
        root.remove(line)


def _add_arguments(root: ET.Element, *values: str) -> None:
    line = root.find(f"{{{QEMU_NS}}}commandline")
    if line is None:
        line = ET.SubElement(root, f"{{{QEMU_NS}}}commandline")
    for value in values:
        ET.SubElement(line, f"{{{QEMU_NS}}}arg", {"value": value})
