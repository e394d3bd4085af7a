"""edgeqkv: export language models with one cached tensor for key and value to devices, with a static cache.

Importing this costs numpy and the standard library; everything else is loaded by the part that needs it.
"""

# The package first, so that the name edgeqkv.export is the function from the line after it on; imports still find the package.
import edgeqkv.export  # noqa: F401
from edgeqkv.api import export, open, tokenizer, verify  # noqa: A004 - edgeqkv.open reads well
from edgeqkv.errors import CacheFull, CheckFailed, EdgeQKVError, MissingPackage

__version__ = "0.2.0"
__all__ = ["CacheFull", "CheckFailed", "EdgeQKVError", "MissingPackage", "export", "open", "tokenizer", "verify"]
