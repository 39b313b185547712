"""Imports the shared tests of a diffusers checkout under a name of their own; nothing of them is copied.

Upstream's helpers import each other relatively, so any package name serves. `tests/conftest.py` is never loaded: it
would put the checkout's `src` in front of the installed diffusers.
"""

import importlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

PACKAGE = "diffusers_common_tests"


def mount(checkout: str) -> None:
    """Make the checkout's `tests` importable as :data:`PACKAGE`."""
    tests = Path(checkout).resolve() / "tests"
    if not (tests / "__init__.py").is_file():
        raise SystemExit(f"{checkout} holds no diffusers test tree; give the root of a diffusers checkout.")
    import_file(tests / "__init__.py", PACKAGE, submodule_search_locations=[str(tests)])


def load(name: str) -> ModuleType:
    """Import `tests.<name>` of the mounted checkout."""
    return importlib.import_module(f"{PACKAGE}.{name}")


def import_file(path: Path, name: str, **options) -> ModuleType:
    """Import a file as a module of the given name."""
    spec = importlib.util.spec_from_file_location(name, path, **options)
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
