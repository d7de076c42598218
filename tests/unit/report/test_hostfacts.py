"""What is read of a host, and None for what its kernel does not say."""

from __future__ import annotations

from pathlib import Path

from kvmft.report import hostfacts


def test_settings_of_a_host(tmp_path: Path) -> None:
    texts = {
        "proc/cpuinfo": "processor\t: 0\nmodel name\t: Some CPU @ 3 GHz\nflags\t: fpu hypervisor\n",
        "proc/meminfo": "MemTotal:       65536 kB\n",
        "sys/kernel/mm/transparent_hugepage/enabled": "always [madvise] never\n",
        "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor": "powersave\n",
        "sys/devices/system/cpu/cpu1/cpufreq/scaling_governor": "performance\n",
        "sys/devices/system/cpu/smt/control": "on\n",
        "sys/devices/system/node/node0/cpulist": "0-1\n",
    }
    for name, text in texts.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    found = hostfacts.facts(tmp_path)
    assert found["cpu"] == "Some CPU @ 3 GHz" and found["memory_mib"] == 64 and found["thp"] == "madvise"
    assert found["governor"] == "performance, powersave" and found["smt"] == "on" and found["numa_nodes"] == 1
    assert found["hypervisor"] is True and found["thp_shmem"] is None and found["preemption"] is None


def test_a_host_that_says_nothing(tmp_path: Path) -> None:
    found = hostfacts.facts(tmp_path)
    assert found["cpu"] and found["cores"] >= 1 and found["memory_mib"] is None and found["governor"] is None
