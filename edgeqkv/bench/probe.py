"""What a device says of itself. One shell script for every kind of device, so that nothing need be installed there."""

import re
import shlex

from edgeqkv.bench import android
from edgeqkv.bench.device import Device
from edgeqkv.bench.machine import Cluster, Environment, Vitals
from edgeqkv.bench.printable import printable

_MARK = "@@ "
_VITALS = r"""
s() { printf '\n@@ %s\n' "$1"; }
s cores
for c in /sys/devices/system/cpu/cpu[0-9]*; do
  for f in scaling_governor cpuinfo_max_freq scaling_cur_freq scaling_max_freq; do
    [ -r "$c/cpufreq/$f" ] && printf '%s %s %s\n' "${c##*cpu}" "$f" "$(cat "$c/cpufreq/$f")"
  done
done
s zones
for z in /sys/class/thermal/thermal_zone*; do
  [ -r "$z/temp" ] && printf '%s %s\n' "$(cat "$z/temp")" "$(cat "$z/type")"
done
s power
for p in /sys/class/power_supply/*; do
  [ -r "$p/type" ] || continue
  printf '%s|%s|%s|%s\n' "$(cat "$p/type")" "$(cat "$p/online")" "$(cat "$p/capacity")" "$(cat "$p/status")"
done
"""
_ENVIRONMENT = r"""
s machine; uname -m
s kernel; uname -sr
s cpuinfo; cat /proc/cpuinfo
s meminfo; cat /proc/meminfo
s os; cat /etc/os-release
s board; tr -d '\000' </proc/device-tree/model || cat /sys/class/dmi/id/product_name
s compatible; tr '\000' '\n' </proc/device-tree/compatible
s boot; cat /proc/sys/kernel/random/boot_id
s affinity; grep Cpus_allowed_list /proc/self/status
s android
command -v getprop >/dev/null && for p in ro.product.manufacturer ro.product.model ro.soc.model ro.build.version.release \
  ro.kernel.qemu ro.boot.qemu; do printf '%s=%s\n' "$p" "$(getprop "$p")"; done
s disk; df -Pk FOLDER
"""
VITALS_SCRIPT = f"exec 2>/dev/null{_VITALS}{android.VITALS}true"


def environment_script(folder: str) -> str:
    """``folder`` is where files will be put: the disk whose free space matters."""
    asked = _ENVIRONMENT.replace("FOLDER", shlex.quote(folder))
    return f"exec 2>/dev/null{_VITALS}{asked}true"


def look_at(device: Device, emulator: bool = False) -> Environment:
    """What a device says of itself; ``emulator`` as for :func:`parse_environment`."""
    parent = (device.folder or ".").rpartition("/")[0] or "."  # ours may not exist yet
    return parse_environment(device.run(environment_script(parent), "describing it"), emulator)


def read_vitals(device: Device) -> Vitals:
    return parse_vitals(device.run(VITALS_SCRIPT, "reading its frequencies and temperatures"))


def parse_vitals(output: str) -> Vitals:
    sections = _sections(output)
    power = [line.split("|") for line in sections.get("power", []) if line.count("|") == 3]
    battery = next((fields for fields in power if fields[0] == "Battery"), None)
    mains = [fields[1] for fields in power if fields[0] in ("Mains", "USB") and fields[1] in ("0", "1")]
    told, screen = android.battery(sections.get("battery", [])), android.screen(sections.get("screen", []))
    zones = android.temperatures(sections.get("thermal", [])) | android.battery_temperature(told)
    for line in sections.get("zones", []):
        value, _, name = line.partition(" ")
        if re.fullmatch(r"-?\d+", value):
            zones[name if name not in zones else f"{name} {len(zones)}"] = int(value)
    return Vitals(
        frequencies_khz=_each_core(sections, "scaling_cur_freq"),
        limits_khz=_each_core(sections, "scaling_max_freq"),
        temperatures=zones or None,
        battery_percent=_number(battery[2]) if battery else android.battery_percent(told),
        battery_status=(battery[3] if battery else None) or android.battery_status(told),
        on_mains="1" in mains if mains else android.on_mains(told),
        thermal_status=android.thermal_status(sections.get("thermal", [])),
        screen_on=screen.on,
        locked=screen.locked,
        in_front=screen.in_front or None,
    )


def parse_environment(output: str, emulator: bool) -> Environment:
    """``emulator`` says that programs are run through one; an emulated phone or a foreign processor shows by itself."""
    sections = _sections(output)
    cpu = [line.partition(":") for line in sections.get("cpuinfo", [])]
    info = {name.strip(): value.strip() for name, _, value in reversed(cpu)}  # the first core's
    android = dict(line.split("=", 1) for line in sections.get("android", []) if "=" in line)
    names = dict(line.split("=", 1) for line in sections.get("os", []) if "=" in line)
    memory = {
        name: rest.split()[0] for name, _, rest in (x.partition(":") for x in sections.get("meminfo", [])) if rest.split()
    }
    machine, features = _first(sections, "machine"), info.get("flags") or info.get("Features")
    maxima, governors = _each_core(sections, "cpuinfo_max_freq"), _core_values(sections, "scaling_governor")
    disk = sections.get("disk", [""])[-1].split()
    product = " ".join(filter(None, (android.get("ro.product.manufacturer"), android.get("ro.product.model"))))
    affinity = _first(sections, "affinity")
    return Environment(
        machine=machine,
        model=product or _first(sections, "board"),
        soc=android.get("ro.soc.model") or _last(sections, "compatible"),
        cpu=_cpu_name(info),
        cpu_features=tuple(sorted(features.split())) if features else None,
        cores=sum(name.strip() == "processor" for name, _, _ in cpu) or None,
        clusters=tuple(Cluster(maxima.count(khz), khz) for khz in sorted(set(maxima))) if maxima else None,
        memory_bytes=_kib(memory.get("MemTotal")),
        memory_available_bytes=_kib(memory.get("MemAvailable")),
        disk_free_bytes=_kib(disk[3]) if len(disk) > 3 else None,
        os=f"Android {android['ro.build.version.release']}"
        if android.get("ro.build.version.release")
        else names.get("PRETTY_NAME", "").strip('"') or None,
        os_kernel=_first(sections, "kernel"),
        governors=tuple(governors) or None,
        affinity=affinity.partition(":")[2].strip() if affinity else None,
        boot_id=_first(sections, "boot"),
        emulated=emulator
        or "1" in (android.get("ro.kernel.qemu"), android.get("ro.boot.qemu"))
        or (machine == "aarch64" and "vendor_id" in info),  # qemu-user shows the host's /proc/cpuinfo
    )


def _sections(output: str) -> dict[str, list[str]]:
    sections: dict[str, list[str]] = {}
    name = ""
    for raw in output.splitlines():
        line = printable(raw)  # a property may hold what a terminal would obey
        if line.startswith(_MARK):
            name = line.removeprefix(_MARK)
        elif line.strip():
            sections.setdefault(name, []).append(line.strip())
    return sections


def _core_values(sections: dict[str, list[str]], wanted: str) -> list[str]:
    """One value for each core that has it, in the order of the cores."""
    found = [line.split(" ", 2) for line in sections.get("cores", [])]
    cores = {int(fields[0]): fields[2] for fields in found if len(fields) == 3 and fields[1] == wanted and fields[0].isdigit()}
    return [cores[core] for core in sorted(cores)]


def _each_core(sections: dict[str, list[str]], wanted: str) -> tuple[int, ...] | None:
    values = tuple(int(value) for value in _core_values(sections, wanted) if value.isdigit())
    return values or None


def _cpu_name(info: dict[str, str]) -> str | None:
    if "CPU part" in info:  # ARM has numbers only
        return f"ARM implementer {info.get('CPU implementer', '?')} part {info['CPU part']}"
    return info.get("model name") or info.get("Hardware") or info.get("Model") or None


def _first(sections: dict[str, list[str]], name: str) -> str | None:
    lines = sections.get(name)
    return lines[0] if lines else None


def _last(sections: dict[str, list[str]], name: str) -> str | None:
    lines = sections.get(name)
    return lines[-1] if lines else None


def _number(text: str | None) -> int | None:
    return int(text) if text and text.isdigit() else None


def _kib(text: str | None) -> int | None:
    number = _number(text)
    return None if number is None else number * 1024
