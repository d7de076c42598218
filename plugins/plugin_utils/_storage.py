# SPDX-License-Identifier: GPL-3.0-or-later
"""Why the logical volume of the pool cannot be made or mounted. Pure: what is found comes from volumes.py."""

from __future__ import annotations

from collections.abc import Mapping


def refusals(found: Mapping, wanted: Mapping, pool: str, create: bool) -> list[str]:
    """Sentences, each with its remedy; empty when everything can go on.

    `found` is what roles/storage/files/volumes.py printed; `wanted` is `kvmft_storage_lvm`.
    """
    group, volume = wanted.get("vg") or "", wanted.get("lv") or "kvmft"
    if not group:
        return ["kvmft_storage_lvm has no vg. Name the volume group of the pool."]
    told = []
    if found["mounted_other"]:
        told.append(
            f"{found['mounted_other']} is mounted at {pool}, not {group}/{volume}. Unmount it, or set "
            "kvmft_storage_backend to directory."
        )
    if found["hidden"] and not found["mounted"]:
        told.append(
            f"{pool} has files ({', '.join(found['hidden'])}) that {group}/{volume} would hide. Move them away first."
        )
    if not found["vg"]:
        told += _no_group(found, wanted, group, create)
    elif not found["lv"] and not create:
        told.append(
            f"The volume group {group} has no logical volume {volume}. Make it, or set kvmft_storage_create to true."
        )
    fstype = wanted.get("fstype") or "ext4"
    if found["lv"] and found["fstype"] and found["fstype"] != fstype:
        told.append(
            f"{group}/{volume} carries {found['fstype']} and not {fstype}; it is not overwritten. Name another volume, "
            "or the file system that it has."
        )
    if found["lv"] and not found["fstype"] and not create:
        told.append(
            f"{group}/{volume} has no file system. Make {fstype} on it, or set kvmft_storage_create to true."
        )
    return told


def _no_group(found: Mapping, wanted: Mapping, group: str, create: bool) -> list[str]:
    if not create:
        return [
            f"There is no volume group {group}. Make it, or set kvmft_storage_create to true and name its devices."
        ]
    if not found["devices"]:
        return [
            f"There is no volume group {group}, and no devices to make it of. Name them in kvmft_storage_lvm.devices."
        ]
    told = []
    for device, state in found["devices"].items():
        if not state["exists"]:
            told.append(f"{device} does not exist. Correct kvmft_storage_lvm.devices.")
        elif state["carries"]:
            told.append(
                f"{device} carries {state['carries']}; it is not overwritten. Name another device, or wipe it yourself "
                f"(wipefs --all {device})."
            )
    return told
