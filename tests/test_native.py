"""A library that is absent and one that does not load are told apart, and neither is a crash."""

import pytest

from edgeqkv import MissingPackage, native


@pytest.fixture
def installed(tmp_path, monkeypatch):
    class Distribution:
        def locate_file(self, name):
            return tmp_path / name.removeprefix("edgeqkv/")

    monkeypatch.setattr(native, "distribution", lambda name: Distribution())
    native.native_library.cache_clear()
    yield tmp_path
    native.native_library.cache_clear()


def test_absent(installed):
    with pytest.raises(MissingPackage, match="was installed without its compiled kernel: there was no C\\+\\+ compiler"):
        native.native_library("absent")


def test_made_for_another_machine(installed):
    (installed / "broken.so").write_bytes(b"for another machine")
    with pytest.raises(MissingPackage, match=r"broken\.so does not load \(.*broken\.so.*\); install edgeqkv again"):
        native.native_library("broken")
