"""ssh devices, over a real sshd that the test starts on the loopback: its own keys, its own configuration, its own port."""

import json
import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import one_sentence

import edgeqkv
from edgeqkv.bench.device import MARK, connections
from edgeqkv.bench.results import read_results
from edgeqkv.bench.running import RunningCell
from edgeqkv.errors import EdgeQKVError

SSHD = shutil.which("sshd", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/sbin")
pytestmark = pytest.mark.skipif(not (SSHD and shutil.which("ssh")), reason="needs Debian's openssh-server and openssh-client")
USER = pwd.getpwuid(os.getuid()).pw_name


class Server:
    """An sshd on a free port; ``config`` is what a client needs to reach it."""

    def __init__(self, folder: Path, more: str = "") -> None:
        folder.mkdir(parents=True)
        for key in ("host", "user"):
            subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / key], check=True)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        (folder / "sshd_config").write_text(
            f"ListenAddress 127.0.0.1:{self.port}\nHostKey {folder / 'host'}\nAuthorizedKeysFile {folder / 'user.pub'}\n"
            f"PasswordAuthentication no\nKbdInteractiveAuthentication no\nUsePAM no\nPidFile none\nStrictModes no\n"
            f"PermitRootLogin prohibit-password\n{more}"
        )
        self.known = folder / "known_hosts"
        self.trust((folder / "host.pub").read_text())
        self.config = folder / "ssh_config"
        self.config.write_text(
            f"Host *\n  IdentityFile {folder / 'user'}\n  IdentitiesOnly yes\n  UserKnownHostsFile {self.known}\n"
        )
        self.name = f"ssh://{USER}@127.0.0.1:{self.port}"
        Path("/run/sshd").mkdir(exist_ok=True)
        self._process = subprocess.Popen([SSHD, "-D", "-e", "-f", folder / "sshd_config"], stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", self.port)) == 0:
                    return
            time.sleep(0.05)
        raise AssertionError("sshd did not start")

    def trust(self, public_key: str) -> None:
        self.known.write_text(f"[127.0.0.1]:{self.port} {public_key}")

    def break_connections(self) -> None:
        for pid in _descendants(self._process.pid):
            os.kill(pid, signal.SIGKILL)

    def stop(self) -> None:
        self.break_connections()
        self._process.terminate()
        self._process.wait()


def _descendants(pid: int) -> list[int]:
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split() if Path(f"/proc/{pid}").exists() else []
    return [found for child in children for found in (*_descendants(int(child)), int(child))]


@pytest.fixture
def server(tmp_path):
    if os.getuid() != 0 and not os.access("/run/sshd", os.W_OK):
        pytest.skip("sshd needs /run/sshd, which only root can make")
    started = []

    def start(name="sshd", **options):
        started.append(Server(tmp_path / name, **options))
        return started[-1]

    yield start
    for one in started:
        one.stop()


@pytest.fixture
def bundle(tiny_model, tmp_path):
    edgeqkv.export(tiny_model("Q-MQA"), tmp_path / "q-mqa")
    return tmp_path / "q-mqa"


@pytest.fixture
def device(tmp_path):
    """Arguments that measure quickly on a server, in a folder whose name would break an unquoted shell."""
    folder = tmp_path / "it's a; $(touch hacked) folder"
    folder.mkdir()

    def arguments(*servers):
        named = [word for one in servers for word in ("--device", one.name)]
        return ["--no-baseline", "--depths", "8", "--steps", 2, "--threads", 1, "--cool-down", 0, "--folder", folder,
                "--python", sys.executable, "--ssh-config", servers[0].config, *named]  # fmt: skip

    arguments.folder = folder / "edgeqkv-bench"
    return arguments


def test_a_bundle_is_sent_measured_and_not_sent_again(cli, server, bundle, device, tmp_path):
    one = server()
    outcome = cli("bench", bundle, *device(one), "--rounds", 1, "--runner", "python", "--json")
    assert outcome.code == 0, outcome.err
    record = json.loads(outcome.out)[0]
    assert (record["device"], record["program"]["name"], record["rounds_done"]) == (one.name, "python", 1)
    assert record["environment"]["machine"] == os.uname().machine
    assert record["environment"]["disk_free_bytes"] > 0
    session = edgeqkv.open(bundle, kernel=record["subject"]["kernel"])
    assert record["greedy_ids"] == list(session.generate([1, 2, 3], limit=16))
    sent = {path: path.stat().st_mtime_ns for path in device.folder.rglob("*") if path.is_file()}
    assert {path.name for path in sent} >= {MARK, "edgeqkv.json", "model.data", "edgeqkv.zip"}
    assert cli("bench", bundle, *device(one), "--rounds", 1, "--runner", "python").code == 0
    assert {path: path.stat().st_mtime_ns for path in sent} == sent
    data = next(path for path in sent if path.name == "model.data")
    data.write_bytes(b"somebody else's")
    assert cli("bench", bundle, *device(one), "--rounds", 1, "--runner", "python", "--clean").code == 0
    assert not device.folder.exists()
    assert list(tmp_path.rglob("hacked")) == []


@pytest.mark.parametrize("runtime", ["onnx", "executorch"])
def test_the_native_runner_is_sent_where_it_fits(cli, server, bundle, device, executorch_bundle, runtime):
    """With the runtime's libraries, which find each other in that folder."""
    from edgeqkv.bench.program import RUNNER
    from edgeqkv.native import native_program

    if native_program(RUNNER) is None:
        pytest.skip("this installation has no native runner")
    bundle = bundle if runtime == "onnx" else executorch_bundle("q_mqa")
    outcome = cli("bench", bundle, *device(server()), "--rounds", 1, "--json")
    assert outcome.code == 0, outcome.err
    record = json.loads(outcome.out)[0]
    assert (record["program"]["name"], record["subject"]["runtime"]) == ("edgeqkv-run", runtime)
    sent = {path.name for path in (device.folder / f"runner-{os.uname().machine}").iterdir()}
    assert "edgeqkv-run" in sent
    assert ("libexecutorch.so" in sent) == (runtime == "executorch")


def test_executorch_in_python_is_not_sent(cli, server, device, executorch_bundle):
    outcome = cli("bench", executorch_bundle("q_mqa"), *device(server()), "--rounds", 1, "--runner", "python")
    assert outcome.code == 3
    assert "ExecuTorch is measured there by edgeqkv-run" in one_sentence(outcome)


def test_cleaning_removes_nothing_that_is_not_ours(server, device):
    one = server()
    device.folder.mkdir()
    (device.folder / "thesis.txt").write_text("years of work")
    with connections(str(device.folder.parent), one.config) as opened:
        opened.open(one.name).clean()
    assert (device.folder / "thesis.txt").read_text() == "years of work"


def test_a_connection_that_breaks_keeps_what_was_measured(cli, server, bundle, device, tmp_path, monkeypatch):
    one, before, seen = server(), RunningCell.at_depth, []

    def breaks(self, depth):
        seen.append(depth)
        if len(seen) == 3:
            one.break_connections()
        before(self, depth)

    monkeypatch.setattr(RunningCell, "at_depth", breaks)
    path = tmp_path / "r.jsonl"
    common = ("bench", bundle, *device(one), "--rounds", 4, "--runner", "python", "--results", path)
    outcome = cli(*common)
    assert outcome.code == 1
    records, failures = read_results([path])
    assert [r.rounds_done for r in records] == [2]
    assert len(failures) == 1
    assert "ended during" in failures[0].message
    outcome = cli(*common, "--resume")
    assert outcome.code == 0, outcome.err
    records, _ = read_results([path])
    assert [r.rounds_done for r in records] == [4]
    assert len(records[0].timings.decode[0].seconds) % 4 == 0, "as many samples in each round"


def test_a_changed_host_key(cli, server, bundle, device):
    one = server()
    one.trust((one.config.parent / "user.pub").read_text())  # a key, but not the host's
    outcome = cli("bench", bundle, *device(one), "--rounds", 1)
    assert outcome.code == 2
    sentence = one_sentence(outcome)
    assert "connecting failed: Host key verification failed; its host key is unknown or has changed" in sentence


def test_a_key_that_is_not_accepted(cli, server, bundle, device):
    one = server()
    (one.config.parent / "user.pub").write_text("")
    outcome = cli("bench", bundle, *device(one), "--rounds", 1)
    assert outcome.code == 2
    assert "Permission denied (publickey); set up a key for it" in one_sentence(outcome)


def test_no_space(server, device, bundle):
    """A quota on the size of files stands in for a full disk: the write fails halfway."""
    one = server(more='ForceCommand sh -c \'ulimit -f 1; trap "" XFSZ; eval "$SSH_ORIGINAL_COMMAND"\'\n')
    with connections(str(device.folder.parent), one.config) as opened:
        small = opened.open(one.name)
        with pytest.raises(EdgeQKVError, match="sending model.data failed: .*(too large|limit)"):
            small.send({"model.data": bundle / "onnx" / "model.data"}, "bundle")
    assert [path.name for path in device.folder.rglob("*") if path.is_file()] == [MARK]


def test_too_little_space_is_told_before_anything_is_sent(server, device):
    one = server()
    said = "Filesystem 1024-blocks Used Available Capacity Mounted\\nx 9 8 1024 99%% /\\n"
    with connections(str(device.folder.parent), one.config) as opened:
        found = opened.open(one.name)
        full = type(found)(found.name, (*found.transport, f'df() {{ printf "{said}"; }};'), found.folder)
        with pytest.raises(
            EdgeQKVError, match=r"1,024.0 MiB have to be sent and 1.0 MiB are free; free some space, remove .*--clean"
        ):
            full._check_room(2**30)


def test_one_device_that_is_away_does_not_stop_the_other(cli, server, bundle, device, tmp_path):
    one = server()
    away = f"ssh://{USER}@127.0.0.1:1"
    outcome = cli("bench", bundle, *device(one), "--device", away, "--rounds", 1, "--results", tmp_path / "r.jsonl", "--json")
    assert outcome.code == 1
    assert [r["device"] for r in json.loads(outcome.out)] == [one.name]
    _, failures = read_results([tmp_path / "r.jsonl"])
    assert [(f.device, f.bundle) for f in failures] == [(away, None)]
    assert "Connection refused" in failures[0].message
    assert "Connection refused" in outcome.err


def test_a_device_without_a_program(cli, server, bundle, device):
    arguments = [("/nonexistent/python" if word == sys.executable else word) for word in device(server())]
    outcome = cli("bench", bundle, *arguments, "--rounds", 1, "--runner", "python")
    assert outcome.code == 3
    assert "name its Python with --python, or a runner built for it with --runner and --library" in one_sentence(outcome)


def test_devices_are_described(cli, server):
    one = server()
    outcome = cli("devices", one.name, f"ssh://{USER}@127.0.0.1:1", "--ssh-config", one.config, "--json")
    assert outcome.code == 0
    found = {entry["device"]: entry for entry in json.loads(outcome.out)}
    assert found[one.name]["environment"]["cores"] == found["local"]["environment"]["cores"] == os.cpu_count()
    assert "Connection refused" in found[f"ssh://{USER}@127.0.0.1:1"]["problem"]
    table = cli("devices", one.name, "--ssh-config", one.config).out
    assert one.name in table
