"""Every error that edgeqkv raises on purpose: one sentence that says what is wrong, where, and what to do."""

import importlib
from types import ModuleType


class EdgeQKVError(Exception):
    """The input was wrong. Base class of all our errors; the command line exits with ``exit_code``."""

    exit_code = 2


class CacheFull(EdgeQKVError):
    """A token was fed to a session whose static cache holds ``capacity`` positions already."""


class CheckFailed(EdgeQKVError):
    """A runtime computed something that cannot be right."""

    exit_code = 1


class MissingPackage(EdgeQKVError):
    """The environment lacks an optional package (or a part of the platform) that this work needs."""

    exit_code = 3


def require(package: str, extra: str) -> ModuleType:
    """Import an optional package, or say in one sentence which extra brings it."""
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise MissingPackage(
            f"this needs the package {package!r}, which cannot be imported here ({error}); "
            f'install it with: pip install "edgeqkv[{extra}]"'
        ) from error
