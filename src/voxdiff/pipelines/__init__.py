"""Diffusion pipelines, one method a file.

Importing this room registers voxdiff with diffusers, so that ``["voxdiff", "Class"]`` entries of a model_index.json
resolve to what voxdiff's root exports, from a folder and from the Hub alike.
"""

from diffusers.pipelines.pipeline_loading_utils import LOADABLE_CLASSES

LOADABLE_CLASSES["voxdiff"] = {
    "ModelMixin": ["save_pretrained", "from_pretrained"],
    "SchedulerMixin": ["save_pretrained", "from_pretrained"],
}
