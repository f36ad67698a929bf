"""diffusers and transformers, as late as possible and as `Any`.

Both take seconds to import, and their classes are typed too partially for mypy --strict.
"""

from __future__ import annotations

import importlib
from typing import Any


def diffusers() -> Any:
    """Import diffusers."""
    return importlib.import_module("diffusers")


def transformers() -> Any:
    """Import transformers."""
    return importlib.import_module("transformers")
