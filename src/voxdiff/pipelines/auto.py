"""`voxdiff.Pipeline`: loads whatever pipeline a folder or a Hub repository holds."""

from voxdiff.pipelines.base import VolumePipeline


class DiffusionPipeline(VolumePipeline):
    """Returns the pipeline class that the repository's ``model_index.json`` names.

    The name matters: diffusers resolves the class in the root package of a class named DiffusionPipeline.

    Example:
        >>> pipe = voxdiff.Pipeline.from_pretrained("org/wdm-brats")  # doctest: +SKIP
        >>> volume = pipe(num_inference_steps=50).volumes[0]  # doctest: +SKIP
    """


DiffusionPipeline.__module__ = "voxdiff"
Pipeline = DiffusionPipeline
