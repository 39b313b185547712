"""Measurements on volumes from any generator; knows files and arrays, never a pipeline."""

import importlib

# Public name -> module that defines it, imported on first use.
_EXPORTS = {
    "evaluate": "voxdiff.metrics.evaluation",
    "EvaluationOptions": "voxdiff.metrics.evaluation_sets",
    "Report": "voxdiff.metrics.report",
    "compare_reports": "voxdiff.metrics.comparison",
    "load_extractor": "voxdiff.metrics.extractors.registry",
    "VolumeSet": "voxdiff.metrics.volume_sets",
    "nearest_by_ms_ssim": "voxdiff.metrics.nearest",
    "paired_metrics": "voxdiff.metrics.paired",
    "segmentation_utility": "voxdiff.metrics.utility",
    "classification_utility": "voxdiff.metrics.utility",
    "export_nnunet": "voxdiff.metrics.nnunet",
}

__all__ = list(_EXPORTS)


def __getattr__(name: str) -> object:
    if name not in _EXPORTS:
        raise AttributeError(f"module 'voxdiff.metrics' has no attribute {name!r}; it exports {', '.join(__all__)}.")
    return getattr(importlib.import_module(_EXPORTS[name]), name)
