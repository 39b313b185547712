"""Converters from official checkpoints, the registry of shipped models, model cards."""

import importlib

_EXPORTS = {
    "convert_checkpoint": "voxdiff.hub.convert",
    "convert_state_dict": "voxdiff.hub.convert",
    "publish_folder": "voxdiff.hub.publish",
    "resolve_model": "voxdiff.hub.registry",
}
__all__ = list(_EXPORTS)


def __getattr__(name: str) -> object:
    if name not in _EXPORTS:
        raise AttributeError(f"module 'voxdiff.hub' has no attribute {name!r}; it exports {', '.join(_EXPORTS)}.")
    return getattr(importlib.import_module(_EXPORTS[name]), name)
