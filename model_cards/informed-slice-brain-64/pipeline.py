import voxdiff  # noqa: F401
from voxdiff import InformedSlicePipeline  # noqa: F401
