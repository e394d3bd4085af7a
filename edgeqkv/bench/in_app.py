"""Measuring inside the Android app: what runtimes/android/in-app.md says of the host.

The app has a fixed number of processes for this. Each is an activity, which the host brings to the front, and a socket, at
which it answers as ``edgeqkv-run --worker`` does.
"""

import json
import re
import shlex
import socket
import subprocess
import time
import uuid
import zipfile
from contextlib import suppress
from pathlib import Path
from typing import TextIO

from msgspec.structs import replace

from edgeqkv.bench import android
from edgeqkv.bench.device import SECONDS_TO_ANSWER, Device, reason
from edgeqkv.bench.machine import Environment
from edgeqkv.bench.printable import printable
from edgeqkv.bench.program import Program
from edgeqkv.bench.record import APP, AppEntry
from edgeqkv.bench.worker_process import MeasuredProcess
from edgeqkv.errors import EdgeQKVError, MissingPackage
from edgeqkv.files import file_sha256
from edgeqkv.progress import Update

PACKAGE = "io.github.edgeqkv.demo"
PROCESSES = 8
SECONDS_TO_START, SECONDS_TO_END = 20, 5
_ABIS = {"aarch64": "arm64-v8a", "arm64": "arm64-v8a", "x86_64": "x86_64", "armv7l": "armeabi-v7a", "armv8l": "armeabi-v7a"}
_ADVICE = {
    "VERSION_DOWNGRADE": f"the device has a newer version of it; name that, or remove it: adb uninstall {PACKAGE}",
    "UPDATE_INCOMPATIBLE": f"the device has it signed with another key; remove that first: adb uninstall {PACKAGE}",
    "INSUFFICIENT_STORAGE": "free some space on the device",
    "USER_RESTRICTED": "allow installing over USB in the device's developer options",
    "OLDER_SDK": "it needs Android 7 or newer",
}


def ready_app(device: Device, environment: Environment, apk: Path, progress: Update) -> "App":
    """The app of ``apk`` on ``device``: installed there unless it is, and not running."""
    if device.adb is None or "Android" not in (environment.os or ""):
        raise EdgeQKVError(f"--in-app measures on Android, by adb://SERIAL; {device.name} is not such a device")
    _check_processor(apk, environment, device)
    sha256 = file_sha256(apk)
    if _installed(device) != sha256:
        progress("installing the app", 0, 0)
        _install(device, apk)
    name, code = android.version(device.run(f"dumpsys package {PACKAGE}", "asking for the app's version"))
    device.run(f"am force-stop {PACKAGE}", "ending what runs of the app")
    return App(device, AppEntry(package=PACKAGE, version_name=name, version_code=code, apk_sha256=sha256, memory=None))


class App(Program):
    """The installed app. One thread asks it; ``adb`` is how its device's client is called."""

    name, most_cells = APP, PROCESSES

    def __init__(self, device: Device, entry: AppEntry) -> None:
        assert device.adb is not None
        self.device, self.adb, self.entry = device, device.adb, entry
        self._free = list(range(PROCESSES))

    def files_sent(self) -> None:
        """Other users of the device may read them: the app is one."""
        self.device.run(f"chmod -R a+rX {shlex.quote(str(self.device.folder))}", "letting the app read what was sent")

    def start(self, device: Device, name: str, title: str) -> MeasuredProcess:
        if not self._free:
            raise EdgeQKVError(f"{device.name}: all {PROCESSES} measured processes of the app are in use")
        number = min(self._free)
        self._free.remove(number)
        return AppProcess(self, number, name, title)

    def end(self) -> None:
        with suppress(EdgeQKVError):  # a device that is away has been told of
            self.device.run(f"am force-stop {PACKAGE}", "ending the app")

    def give_back(self, number: int) -> None:
        self._free.append(number)

    def look(self, number: int) -> tuple[str, android.Screen]:
        """The id of a process, empty where it does not run, and what the user has in front."""
        script = f"exec 2>/dev/null; s() {{ :; }}; echo process $(pidof {PACKAGE}:measure{number}){android.SCREEN}true"
        lines = self.device.run(script, "looking at its screen").splitlines()
        return "".join(lines[:1]).partition(" ")[2].strip(), android.screen(lines[1:])

    def bring_to_front(self, number: int, socket_name: str, title: str) -> None:
        component = activity(number)
        self.device.run("input keyevent KEYCODE_WAKEUP; wm dismiss-keyguard 2>/dev/null; true", "waking it")
        command = f"am start -n {component} --es socket {socket_name} --es title {shlex.quote(title)}"
        said = self.device.run(f"{command} 2>&1; true", "starting the app")
        if wrong := re.search(r"^.*(?:^Error|Exception).*$", said, re.MULTILINE):
            raise EdgeQKVError(f"{self.device.name}: the app cannot be started: {printable(wrong[0])}")
        end = time.monotonic() + SECONDS_TO_START
        while not is_in_front(seen := self.look(number)[1], component):
            if time.monotonic() > end:
                raise EdgeQKVError(f"{self.device.name}: {_what_hides_it(seen)}")
            time.sleep(0.2)

    def process_id(self, number: int) -> str:
        found = self.device.run(f"pidof {PACKAGE}:measure{number}; true", "looking for the app's process").strip()
        return found if found.isdigit() else ""

    def client(self, *words: str) -> str:
        """What the adb client does on this side."""
        try:
            done = subprocess.run([*self.adb, *words], capture_output=True, timeout=SECONDS_TO_ANSWER)
        except subprocess.TimeoutExpired as error:
            raise EdgeQKVError(f"{self.device.name}: adb {words[0]} took more than {SECONDS_TO_ANSWER} s") from error
        if done.returncode:
            raise EdgeQKVError(f"{self.device.name}: adb {words[0]} failed: {reason(done.stderr, done.returncode)}")
        return done.stdout.decode(errors="replace").strip()


def activity(number: int) -> str:
    return f"{PACKAGE}/.MeasureActivity{number}"


def is_in_front(seen: android.Screen, component: str) -> bool:
    """As far as the phone says; behind another app or a dark screen it is not what users have before them."""
    return seen.in_front in (component, None) and seen.on is not False and not seen.locked


class AppProcess(MeasuredProcess):
    """One of the app's processes, connected."""

    def __init__(self, app: App, number: int, name: str, title: str) -> None:
        super().__init__(name)
        self._app, self._number, self._title = app, number, title
        self._socket_name = f"edgeqkv-bench-{uuid.uuid4().hex}"
        self._port, self._process_id = "", ""
        self._socket: socket.socket | None = None
        self._lines: TextIO | None = None
        try:
            app.bring_to_front(number, self._socket_name, title)
            self._port = app.client("forward", "tcp:0", f"localabstract:{self._socket_name}")
            self._connect(int(self._port))
        except (EdgeQKVError, OSError, ValueError) as error:
            self.close()
            if isinstance(error, EdgeQKVError):
                raise
            raise EdgeQKVError(f"{app.device.name}: adb forwards nothing to the app ({error}); update adb") from error

    def _connect(self, port: int) -> None:
        """The adb server takes a connection before there is an app at its other end; an answer shows that there is."""
        end = time.monotonic() + SECONDS_TO_START
        while time.monotonic() < end:
            self._socket = socket.create_connection(("127.0.0.1", port), SECONDS_TO_ANSWER)
            self._lines = self._socket.makefile("rw", encoding="utf-8")
            if self._round_trip(json.dumps({"do": "memory"})).endswith("\n"):
                self._socket.settimeout(None)
                self._process_id = self._app.process_id(self._number)
                return
            self._disconnect()
            time.sleep(0.2)
        raise EdgeQKVError(
            f"{self._app.device.name}: the app does not answer; open it once by hand, and see what adb logcat says of {PACKAGE}"
        )

    def _exchange(self, request: str) -> str:
        process_id, seen = self._app.look(self._number)
        if process_id != self._process_id:
            return ""  # to start its activity again would start another process
        if not is_in_front(seen, activity(self._number)):
            self._app.bring_to_front(self._number, self._socket_name, self._title)
        return self._round_trip(request)

    def _disconnect(self) -> None:
        for one in (self._lines, self._socket):
            with suppress(OSError):
                if one is not None:
                    one.close()

    def _round_trip(self, request: str) -> str:
        assert self._lines is not None
        try:
            self._lines.write(request + "\n")
            self._lines.flush()
            return self._lines.readline()
        except (OSError, ValueError):
            return ""

    def app(self) -> AppEntry:
        text = self._app.device.run(f"dumpsys meminfo {self._process_id}; true", "asking for the app's memory")
        return replace(self._app.entry, memory=android.app_memory(text))

    def _end(self) -> str:
        try:
            if self._app.process_id(self._number) == self._process_id:
                return "the connection was closed"
            text = self._app.device.run(f"dumpsys activity exit-info {PACKAGE}; true", "asking how the app ended")
        except EdgeQKVError as error:
            return str(error)
        why = android.reason_of_end(text, self._process_id)
        if why == "LOW_MEMORY":
            return "Android ended it for want of memory; measure fewer bundles at once, or smaller ones"
        return f"Android says: {printable(why)}" if why else "Android does not say why"

    def kill(self) -> None:
        if self._socket is not None:
            with suppress(OSError):  # it is gone already
                self._socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """It ends when the connection does; only then its activity can be used again."""
        self.kill()
        self._disconnect()
        try:
            if self._port:
                self._app.client("forward", "--remove", f"tcp:{self._port}")
            end = time.monotonic() + SECONDS_TO_END
            while self._app.process_id(self._number):
                if time.monotonic() > end:
                    return
                time.sleep(0.1)
        except EdgeQKVError:  # the device is away
            return
        self._app.give_back(self._number)


def _check_processor(apk: Path, environment: Environment, device: Device) -> None:
    try:
        with zipfile.ZipFile(apk) as archive:
            there = {name.split("/")[1] for name in archive.namelist() if re.fullmatch(r"lib/[^/]+/[^/]+\.so", name)}
    except (OSError, zipfile.BadZipFile) as error:
        raise EdgeQKVError(f"--apk {apk} is not an APK: {error}") from error
    abi = _ABIS.get(environment.machine or "")
    if abi not in there:
        known = ", ".join(sorted(there)) or "no processor"
        raise MissingPackage(f"{device.name} is {environment.machine}, and {apk.name} has libraries for {known}")


def _installed(device: Device) -> str | None:
    """The sha256 of the APK there; None where there is none, or several (an app in parts)."""
    lines = device.run(f"pm path {PACKAGE}; true", "looking for the app").splitlines()
    paths = [line.removeprefix("package:").strip() for line in lines if line.startswith("package:")]
    if len(paths) != 1:
        return None
    said = device.run(f"sha256sum {shlex.quote(paths[0])}; true", "comparing the app", seconds=600)
    found = re.match(r"[0-9a-f]{64}\b", said)
    return found[0] if found else None


def _install(device: Device, apk: Path) -> None:
    script = f"pm install -r -S {apk.stat().st_size} 2>&1; true"
    said = device.run(script, "installing the app", apk, 600)
    if "Success" not in said:
        advice = next((text for word, text in _ADVICE.items() if f"INSTALL_FAILED_{word}" in said), None)
        sentence = f"{device.name}: {apk.name} cannot be installed: {_last_line(said)}"
        raise EdgeQKVError(f"{sentence}; {advice}" if advice else sentence)
    if _installed(device) is None:
        raise EdgeQKVError(f"{device.name}: {apk.name} was installed and is not {PACKAGE}; name the APK of that app")


def _last_line(said: str) -> str:
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    return printable(lines[-1]).rstrip(".") if lines else "it says nothing"


def _what_hides_it(seen: android.Screen) -> str:
    if seen.on is False:
        return "its screen stays off; switch it on, and keep it on (developer options: stay awake)"
    if seen.locked:
        return "it is locked; unlock it, and keep it on (developer options: stay awake)"
    return f"the app does not come to the front: {printable(seen.in_front or 'something else')} is there; close that"
