"""What Android says by ``dumpsys``: heat, battery, the screen, and an app's processes.

The formats are those of Android 7 to 15, which differ; what is not found is None.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from edgeqkv.bench.record import AppMemory

# Lines of a shell script, in which "s NAME" begins a section. Other systems have no dumpsys.
SCREEN = r"""
s screen
dumpsys power | grep mWakefulness=
dumpsys window policy | grep -E '(^| )(showing|mShowingLockscreen)='
dumpsys activity activities | grep -E '(R|r)esumedActivity|mKeyguardShowing='
"""
VITALS = rf"""
if command -v dumpsys >/dev/null; then
s thermal
dumpsys thermalservice
s battery
dumpsys battery
{SCREEN}
fi
"""
_BATTERY_STATUS = {"2": "Charging", "3": "Discharging", "4": "Not charging", "5": "Full"}  # as Linux says it; 1 is unknown
_PARTS = ("Java Heap", "Native Heap", "Code", "Stack", "Graphics", "Private Other", "System")


@dataclass(frozen=True)
class Screen:
    """``in_front`` is an activity, empty where there is none."""

    on: bool | None
    locked: bool | None
    in_front: str | None


def screen(lines: Sequence[str]) -> Screen:
    """The section ``screen``."""
    text = "\n".join(lines)
    awake = re.search(r"mWakefulness=(\w+)", text)
    locks = re.findall(r"\b(?:showing|mShowingLockscreen|mKeyguardShowing)=(true|false)", text)
    # Android 10 says which one has the focus of several; 7 to 9 have the one.
    activity = r"\s*[:=]\s*ActivityRecord\{\S+ \S+ ([^\s}]+)"
    front = re.search(rf"topResumedActivity{activity}", text) or re.search(rf"ResumedActivity{activity}", text)
    return Screen(
        on=awake[1] == "Awake" if awake else None,
        locked="true" in locks if locks else None,
        in_front=front[1] if front else "" if "ResumedActivity" in text else None,
    )


def thermal_status(lines: Sequence[str]) -> int | None:
    """The section ``thermal``; Android 10 and newer have it."""
    found = re.search(r"Thermal Status: ([0-6])\b", "\n".join(lines))
    return int(found[1]) if found else None


def temperatures(lines: Sequence[str]) -> dict[str, int]:
    """1/1000 °C by the sensor's name, as measured now where that is said, else as remembered. A sensor may say -99.9."""
    text = "\n".join(lines)
    text = text.partition("Current temperatures from HAL")[2] or text
    found = re.findall(r"\bTemperature\{mValue=(-?[\d.]+), mType=-?\d+, mName=([^,}]+)", text)
    return {name: round(float(value) * 1000) for value, name in found if float(value) > -90}


def battery(lines: Sequence[str]) -> dict[str, str]:
    """The fields of the section ``battery``."""
    pairs = (line.partition(":") for line in lines)
    return {name.strip(): value.strip() for name, _, value in pairs if value.strip()}


def battery_percent(fields: dict[str, str]) -> int | None:
    level, scale = fields.get("level", ""), fields.get("scale", "100")
    return int(level) * 100 // int(scale) if level.isdigit() and scale.isdigit() and int(scale) else None


def battery_status(fields: dict[str, str]) -> str | None:
    return _BATTERY_STATUS.get(fields.get("status", ""))


def battery_temperature(fields: dict[str, str]) -> dict[str, int]:
    """It is given in 1/10 °C."""
    value = fields.get("temperature", "")
    return {"battery": int(value) * 100} if re.fullmatch(r"-?\d+", value) else {}


def on_mains(fields: dict[str, str]) -> bool | None:
    sources = [value for name, value in fields.items() if name.endswith(" powered")]
    return "true" in sources if sources else None


def app_memory(text: str) -> AppMemory | None:
    """The summary of ``dumpsys meminfo PID``, which is in KiB; None where there is none."""

    def size(name: str) -> int | None:
        found = re.search(rf"\b{name}:\s+(\d+)", text)
        return int(found[1]) * 1024 if found else None

    total = size("TOTAL PSS") or size("TOTAL")
    if total is None:
        return None
    java_heap, native_heap, code, stack, graphics, private_other, system = map(size, _PARTS)
    return AppMemory(
        total_pss=total,
        total_rss=size("TOTAL RSS"),
        swap_pss=size("TOTAL SWAP PSS"),
        java_heap=java_heap,
        native_heap=native_heap,
        code=code,
        stack=stack,
        graphics=graphics,
        private_other=private_other,
        system=system,
    )


def version(text: str) -> tuple[str | None, int | None]:
    """Name and code of an app's version, of ``dumpsys package PACKAGE``."""
    name, code = re.search(r"\bversionName=(\S+)", text), re.search(r"\bversionCode=(\d+)", text)
    return (name[1] if name else None, int(code[1]) if code else None)


def reason_of_end(text: str, process_id: str) -> str | None:
    """Why a process ended, in Android's words, of ``dumpsys activity exit-info PACKAGE`` (Android 11 and newer)."""
    for entry in text.split("ApplicationExitInfo #")[1:]:
        found = re.search(r"\breason=\d+ \((.+?)\)(?=\s|$)", entry)
        if found and re.search(rf"\bpid={process_id}\b", entry):
            return found[1]
    return None
