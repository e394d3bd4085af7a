"""Export: a trained model into a bundle. One module per target.

``edgeqkv.export`` is this package and, as a call, what it is for: ``edgeqkv.export("models/q-mqa", "build/q-mqa")``.
"""

import sys
from types import ModuleType
from typing import Any

from edgeqkv.export.bundle import export_bundle


class _CallablePackage(ModuleType):
    """Lets the package and the verb share their natural name."""

    def __call__(self, *args: Any, **options: Any) -> Any:
        return export_bundle(*args, **options)


_CallablePackage.__call__.__doc__ = export_bundle.__doc__
sys.modules[__name__].__class__ = _CallablePackage
