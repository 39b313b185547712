import voxdiff.pipelines  # noqa: F401
from voxdiff import WaveletDiffusionPipeline  # noqa: F401
