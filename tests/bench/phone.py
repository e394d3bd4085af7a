"""The commands of an Android phone, for the device daemon of adbd.py: am, pm, dumpsys and others. For tests only.

``phone.py COMMAND ...`` is one of them; a :class:`Phone` is the folder of their state, and what a test does to it. They answer
in the words of Android 14 (``release`` 14) or 8. What ``am start`` starts is a real worker: edgeqkv-run behind a socket in the
abstract namespace, as the app's is.
"""

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import zipfile
from pathlib import Path

PACKAGE = "io.github.edgeqkv.demo"
LAUNCHER = "com.android.launcher3/.Launcher"
COMMANDS = ("am", "pm", "dumpsys", "getprop", "input", "wm")
# What is asked before every request takes no Python: dumpsys prints what was written when it changed.
OFTEN = {"power": "power", "window policy": "window", "activity activities": "activity"}
PIDOF = f'#!/bin/sh\ncat "$PHONE/${{1#{PACKAGE}:}}" 2>/dev/null\n'


def make_apk(path, code, name="0.2.0", abi="x86_64", padding=""):
    """What an APK says here: its version, in a file of its own, and the processor of its library."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("version.json", json.dumps({"code": code, "name": name, "padding": padding}))
        archive.writestr(f"lib/{abi}/libedgeqkv_jni.so", b"")
    return path


class Phone:
    """Its state is one JSON file, its commands' folder comes first in ``environment``'s PATH."""

    def __init__(self, folder: Path, runner, library, release="14") -> None:
        self.folder = folder
        (folder / "bin").mkdir(parents=True)
        for name in COMMANDS:
            path = folder / "bin" / name
            often = "".join(f'"{words}") exec cat "$PHONE/{file}";; ' for words, file in OFTEN.items() if name == "dumpsys")
            path.write_text(f"#!/bin/sh\ncase \"$*\" in {often}esac\nexec '{sys.executable}' -IS '{__file__}' {name} \"$@\"\n")
        (folder / "bin" / "pidof").write_text(PIDOF)
        for path in (folder / "bin").iterdir():
            path.chmod(0o755)
        self.environment = {"PATH": f"{folder / 'bin'}:{os.environ['PATH']}", "PHONE": str(folder)}
        self.set(
            release=release, awake=True, locked=False, wakes=True, front=LAUNCHER, install="", started=[], exits=[],
            runner=[str(runner), str(library)], battery=85, thermal=0,
        )  # fmt: skip

    def set(self, **values) -> None:
        write(self.folder, read(self.folder) | values)

    def get(self, name):
        return read(self.folder)[name]

    @property
    def installed(self):
        return self.folder / "data app" / "base.apk"

    def process_ids(self):
        return {path.name: int(path.read_text()) for path in self.folder.glob("measure*")}

    def kill(self, name, reason) -> None:
        """As the low-memory killer does it."""
        process_id = self.process_ids()[name]
        self.set(exits=[[process_id, name, reason], *self.get("exits")], front=LAUNCHER)
        os.killpg(process_id, signal.SIGKILL)
        (self.folder / name).unlink()


def read(folder):
    path = Path(folder) / "state.json"
    return json.loads(path.read_text()) if path.exists() else {}


def write(folder, state) -> None:
    for name, text in {"state.json": json.dumps(state), **screens(state)}.items():
        part = folder / f"{name}.part"
        part.write_text(text)
        part.replace(folder / name)


def screens(state):
    """What dumpsys says of power, windows and activities."""
    new, awake, locked, front = (state[name] for name in ("release", "awake", "locked", "front"))
    new, shown = new == "14", str(locked).lower()
    running = f"ActivityRecord{{1a2b3c u0 {front} t12}}" if awake and not locked else "null"
    delegate = f"    KeyguardServiceDelegate\n      showing={shown}\n      showingAndNotOccluded=true\n      mIsShowing=true\n"
    old = f"    mShowingLockscreen={shown} mShowingDream=false mDreamingLockscreen=true\n"
    resumed = (
        f"    topResumedActivity={running}\n  ResumedActivity: {running}\n" if new else f"    mResumedActivity: {running}\n"
    )
    keyguard = f"  KeyguardController:\n    mKeyguardShowing={shown}\n    mAodShowing=false\n" if new else ""
    return {
        "power": f"Power Manager State:\n  mDirty=0x0\n  mWakefulness={'Awake' if awake else 'Asleep'}\n",
        "window": f"WINDOW MANAGER POLICY STATE (dumpsys window policy)\n{delegate if new else old}",
        "activity": f"ACTIVITY MANAGER ACTIVITIES (dumpsys activity activities)\nDisplay #0:\n{resumed}{keyguard}",
    }


# -- the commands -----------------------------------------------------------------------------------------------------


def version(apk):
    with zipfile.ZipFile(apk) as archive:
        return json.loads(archive.read("version.json"))


def run_am(phone, *words):
    if words[0] == "force-stop":
        for name, process_id in phone.process_ids().items():
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process_id, signal.SIGKILL)
            (phone.folder / name).unlink(missing_ok=True)
        return
    component = words[words.index("-n") + 1]
    extras = {words[i + 1]: words[i + 2] for i, word in enumerate(words) if word == "--es"}
    print(f"Starting: Intent {{ cmp={component} (has extras) }}")
    if not phone.installed.exists():
        print("Error type 3")
        print(f"Error: Activity class {{{component}}} does not exist.")
        sys.exit(1)
    if phone.get("awake") and not phone.get("locked"):
        phone.set(front=component)
    phone.set(started=[*phone.get("started"), component])
    name = component.removeprefix(f"{PACKAGE}/.MeasureActivity")
    if f"measure{name}" in phone.process_ids():
        print("Warning: Activity not started, its current task has been brought to the front")
        return
    started = subprocess.Popen(
        [sys.executable, __file__, "app", name, extras["socket"]],
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    (phone.folder / f"measure{name}").write_text(str(started.pid))


def run_app(phone, number, name):
    """MeasureActivity: one connection, a worker of its own, and then its end."""
    time.sleep(0.3)  # ART takes its time
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(f"\0{name}")
        listener.listen()
        connection, _ = listener.accept()
    runner, library = phone.get("runner")
    with connection:
        subprocess.run([runner, "--worker", "--library", library], stdin=connection, stdout=connection)
    (phone.folder / f"measure{number}").unlink(missing_ok=True)


def run_pm(phone, *words):
    if words[0] == "path":
        if not phone.installed.exists():
            sys.exit(1)
        print(f"package:{phone.installed}")
        return
    assert words[:3] == ("install", "-r", "-S")
    content = sys.stdin.buffer.read()
    assert len(content) == int(words[3])
    refused = phone.get("install")
    part = phone.folder / "part.apk"
    part.write_bytes(content)
    if not refused and phone.installed.exists() and version(part)["code"] < version(phone.installed)["code"]:
        there, new = version(phone.installed)["code"], version(part)["code"]
        refused = (
            f"INSTALL_FAILED_VERSION_DOWNGRADE: Downgrade detected: Update version code {new} is older than current {there}"
        )
    if refused:
        print(f"Failure [{refused}]")
        sys.exit(1)
    phone.installed.parent.mkdir(exist_ok=True)
    part.replace(phone.installed)
    print("Success")


def run_dumpsys(phone, service, *words):
    new = phone.get("release") == "14"
    if (service, *words[:1]) == ("activity", "exit-info"):
        if not new:
            print("Bad activity command, or no activities match: exit-info")
            return
        print(f"ACTIVITY MANAGER PROCESS EXIT INFO (dumpsys activity exit-info)\n  package: {PACKAGE}")
        print("    Historical Process Exit for uid=10123")
        for i, (process_id, name, reason) in enumerate(phone.get("exits")):
            print(f"        ApplicationExitInfo #{i}:")
            print(f"          timestamp=2026-11-24 09:00:00.123 pid={process_id} realUid=10123 packageUid=10123 user=0")
            print(f"          process={PACKAGE}:{name} reason={reason} subreason=0 (UNKNOWN) status=9")
            print("          importance=400 pss=12MB rss=34MB description=null state=empty trace=null")
    elif service == "thermalservice":
        if not new:
            print("Can't find service: thermalservice", file=sys.stderr)
            sys.exit(20)
        print(f"IsStatusOverride: false\nThermalEventListeners:\n\tcallbacks: 2\nThermal Status: {phone.get('thermal')}")
        print("Cached temperatures:\n\tTemperature{mValue=45.0, mType=3, mName=skin, mStatus=1}")
        print("HAL Ready: true\nCurrent temperatures from HAL:\n\tTemperature{mValue=33.2, mType=3, mName=skin, mStatus=0}")
        print("\tTemperature{mValue=-99.9, mType=6, mName=pa, mStatus=0}\nCurrent cooling devices from HAL:")
    elif service == "battery":
        print("Current Battery Service state:\n  AC powered: false\n  USB powered: true\n  Wireless powered: false")
        print(f"  status: 2\n  health: 2\n  present: true\n  level: {phone.get('battery')}\n  scale: 100\n  temperature: 283")
    elif service == "package":
        if not phone.installed.exists():
            print(f"Unable to find package: {words[0]}")
            return
        there = version(phone.installed)
        print(f"Packages:\n  Package [{words[0]}] (a1b2c3):\n    versionCode={there['code']} minSdk=24 targetSdk=35")
        print(f"    versionName={there['name']}\n    splits=[base]")
    elif service == "meminfo":
        status = Path(f"/proc/{words[0]}/status")
        if not status.exists():
            print(f"No process found for: {words[0]}")
            return
        used = int(re.search(r"VmRSS:\s+(\d+)", status.read_text())[1])
        print(
            f"Applications Memory Usage (in Kilobytes):\nUptime: 1 Realtime: 1\n\n** MEMINFO in pid {words[0]} [{PACKAGE}] **"
        )
        print("        TOTAL    39321    17708    15740      545   124676    29379    20035     4718\n\n App Summary")
        if new:
            print("                       Pss(KB)                        Rss(KB)")
            print("           Java Heap:     2480                          18640")
            print("         Native Heap:    12464                          13460")
            print("                Code:    15888                          88088")
            print("               Stack:      480                            488")
            print("            Graphics:        0                              0")
            print("       Private Other:     2136\n              System:     5873")
            print("             Unknown:                                    4000\n")
            print(f"           TOTAL PSS:    {used}            TOTAL RSS:   124676       TOTAL SWAP PSS:      545\n")
        else:
            print("                       Pss(KB)\n                        ------\n           Java Heap:    15044")
            print("         Native Heap:    46620\n                Code:    29332\n               Stack:      108")
            print("            Graphics:    60288\n       Private Other:    11196\n              System:    11957\n")
            print(f"               TOTAL:   {used}       TOTAL SWAP PSS:      303\n")
        print(" Objects\n               Views:       24")
    else:
        print(f"Can't find service: {service}", file=sys.stderr)
        sys.exit(20)


def run_getprop(phone, name):
    known = {"ro.product.manufacturer": "Test", "ro.product.model": "Phone 9", "ro.soc.model": "TEST 1"}
    print((known | {"ro.build.version.release": phone.get("release")}).get(name, ""))


def run_input(phone, *words):
    if words == ("keyevent", "KEYCODE_WAKEUP") and phone.get("wakes"):
        phone.set(awake=True)


def run_wm(phone, *words):
    """A lock that asks for a PIN stays."""


if __name__ == "__main__":
    this = Phone.__new__(Phone)
    this.folder = Path(os.environ["PHONE"])
    globals()[f"run_{sys.argv[1]}"](this, *sys.argv[2:])
