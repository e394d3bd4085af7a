"""Energy as made-up trees of /sys tell it, read by the script that a device runs."""

import subprocess

import pytest

from edgeqkv.bench.energy import BATTERY, RAILS, RAPL, Reading, energy_script, joules, parse_energy


def read(tree):
    """The reading of a tree of files, whose folder's name no shell may take for anything else."""
    done = subprocess.run(["sh", "-c", energy_script(str(tree))], capture_output=True, text=True, check=True)
    assert done.stderr == ""
    return parse_energy(done.stdout)


@pytest.fixture
def tree(tmp_path):
    def write(**files):
        root = tmp_path / "it's a; $(touch hacked) root"
        for path, text in files.items():
            file = root / "sys" / path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text + "\n")
        return root

    return write


def zone(number, name, energy, most="262143328850"):
    folder = f"class/powercap/intel-rapl:{number}"
    return {f"{folder}/name": name, f"{folder}/energy_uj": energy, f"{folder}/max_energy_range_uj": most}


def battery(current, voltage="3900000", status="Discharging"):
    files = {"type": "Battery", "status": status, "current_now": current, "voltage_now": voltage}
    return {f"class/power_supply/bms/{name}": text for name, text in files.items()}


def test_rapl_counts_each_package_once(tree):
    """psys and core are in the packages or around them; the MMIO interface tells the same package a second time."""
    mmio = {path.replace("intel-rapl", "mmio"): text for path, text in zone("0", "package-0", "5000000").items()}
    packages = zone("0", "package-0", "5000000") | zone("1", "package-1", "7000000")
    counters = {"package-0": 5000000, "package-1": 7000000}
    root = tree(**packages, **mmio, **zone("0:0", "core", "1"), **zone("2", "psys", "99"))
    assert read(root) == Reading(RAPL, counters, dict.fromkeys(counters, 262143328850), None)


def test_rapl_that_only_root_may_read_tells_nothing(tree):
    root = tree(**zone("0", "package-0", ""))
    assert read(root).source is None


def test_power_rails_of_the_processor_and_of_memory(tree):
    rails = "t=34\nCH0(T=34)[S10M_VDD_TPU], 5578756\nCH3(T=34)[S4M_VDD_CPUCL0], 29110940\nCH5(T=34)[L2S_VDD_MIF], 41"
    root = tree(**{"bus/iio/devices/iio:device0/energy_value": rails, "bus/iio/devices/iio:device1/name": "light"})
    assert read(root) == Reading(RAILS, {"S4M_VDD_CPUCL0": 29110940, "L2S_VDD_MIF": 41}, {}, None)


@pytest.mark.parametrize("current", ["-500000", "500000", "-500"])
def test_a_discharging_battery(tree, current):
    """The sign is the driver's choice, and some say mA."""
    assert read(tree(**battery(current))) == Reading(BATTERY, {}, {}, pytest.approx(1.95))


@pytest.mark.parametrize("files", [battery("-500000", status="Charging"), battery("?"), battery("0"), {}])
def test_silence(tree, files):
    assert read(tree(**files)) == Reading(None, {}, {}, None)


def test_the_better_source_counts(tree):
    assert read(tree(**battery("-500000"), **zone("0", "package-0", "5"))).source == RAPL


def counted(micro, most=1000):
    return Reading(RAPL, {"package-0": micro}, {"package-0": most}, None)


def test_a_counter_that_begins_again():
    assert joules([counted(900), counted(950), counted(100)], 1.0) == pytest.approx(200e-6)


def test_the_power_of_a_battery_is_that_under_load():
    readings = [Reading(BATTERY, {}, {}, watts) for watts in (0.5, 3.0, 5.0)]
    assert joules(readings, 2.0) == pytest.approx(8.0)


def test_readings_that_do_not_go_together():
    assert joules([counted(1), Reading(BATTERY, {}, {}, 1.0)], 1.0) is None
    assert joules([counted(1), Reading(RAPL, {"package-1": 5}, {}, None)], 1.0) is None
    assert joules([counted(1)], 1.0) is None
    assert joules([Reading(None, {}, {}, None)] * 2, 1.0) is None
