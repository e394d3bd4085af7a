"""What is made of a device's words: a phone's, a board's, and none at all."""

import os
import subprocess

from msgspec.structs import asdict

from edgeqkv.bench.machine import Cluster
from edgeqkv.bench.probe import VITALS_SCRIPT, environment_script, parse_environment, parse_vitals

PHONE = """
@@ cores
0 scaling_governor walt
0 cpuinfo_max_freq 1800000
0 scaling_cur_freq 300000
0 scaling_max_freq 1800000
10 scaling_governor walt
10 cpuinfo_max_freq 3200000
10 scaling_cur_freq 3100000
10 scaling_max_freq 2500000
2 scaling_governor walt
2 cpuinfo_max_freq 1800000
2 scaling_cur_freq 400000
2 scaling_max_freq 1800000

@@ zones
41000 cpu-0
42500 cpu-0
-40000 unplugged sensor

@@ power
USB|0||
Battery|1|77|Discharging

@@ machine
aarch64

@@ kernel
Linux 5.10.1

@@ cpuinfo
processor	: 0
Features	: fp asimd
CPU implementer	: 0x41
CPU part	: 0xd05

processor	: 1
CPU part	: 0xd0c

@@ meminfo
MemTotal:        8000000 kB
MemAvailable:    4000000 kB

@@ android
ro.product.manufacturer=Acme
ro.product.model=One $(reboot)
ro.soc.model=SM8550
ro.build.version.release=14
ro.kernel.qemu=
@@ disk
Filesystem 1024-blocks Used Available Capacity Mounted on
/dev/block/dm-1 100 40 60 40% /data
"""


def test_a_phone():
    e = parse_environment(PHONE, emulator=False)
    assert (e.machine, e.model, e.soc, e.os, e.os_kernel) == (
        "aarch64",
        "Acme One $(reboot)",
        "SM8550",
        "Android 14",
        "Linux 5.10.1",
    )
    assert e.cpu == "ARM implementer 0x41 part 0xd05"
    assert (e.cores, e.cpu_features) == (2, ("asimd", "fp"))
    assert e.clusters == (Cluster(2, 1800000), Cluster(1, 3200000))
    assert (e.memory_bytes, e.memory_available_bytes, e.disk_free_bytes) == (8192000000, 4096000000, 60 * 1024)
    assert e.governors == ("walt", "walt", "walt")
    assert (e.affinity, e.boot_id, e.emulated) == (None, None, False)
    v = parse_vitals(PHONE)
    assert v.frequencies_khz == (300000, 400000, 3100000)  # in the order of the cores, not of their names
    assert v.limits_khz == (1800000, 1800000, 2500000)
    assert v.temperatures == {"cpu-0": 41000, "cpu-0 1": 42500, "unplugged sensor": -40000}
    assert (v.battery_percent, v.battery_status, v.on_mains) == (77, "Discharging", False)


def test_a_property_cannot_speak_to_the_terminal():
    e = parse_environment("@@ machine\naarch64\x1b[2J\x07\n", emulator=False)
    assert e.machine == "aarch64 [2J"


def test_silence_is_null_everywhere():
    e = parse_environment("", emulator=False)
    assert {name for name, value in asdict(e).items() if value is not None} == {"emulated"}
    assert set(asdict(parse_vitals("")).values()) == {None}


def test_emulation_shows():
    assert parse_environment(PHONE, emulator=True).emulated
    assert parse_environment(PHONE.replace("ro.kernel.qemu=", "ro.kernel.qemu=1"), emulator=False).emulated
    foreign = "@@ machine\naarch64\n@@ cpuinfo\nprocessor : 0\nvendor_id : AuthenticAMD\n"
    assert parse_environment(foreign, emulator=False).emulated


def test_this_machine():
    script = environment_script("/tmp/a folder's name")
    e = parse_environment(subprocess.run(["sh", "-c", script], capture_output=True, text=True, check=True).stdout, False)
    assert e.machine == os.uname().machine
    assert e.os_kernel == f"{os.uname().sysname} {os.uname().release}"
    if os.path.exists("/proc/cpuinfo"):
        assert e.cores == os.cpu_count()
        assert e.memory_bytes > e.memory_available_bytes > 0
    vitals = subprocess.run(["sh", "-c", VITALS_SCRIPT], capture_output=True, text=True, check=True)
    assert vitals.stderr == ""
    parse_vitals(vitals.stdout)


def test_a_folder_cannot_break_out_of_the_script(tmp_path):
    victim = tmp_path / "victim"
    subprocess.run(["sh", "-c", environment_script(f"'; touch {victim}; echo '")], capture_output=True, check=True)
    assert not victim.exists()
