import voxdiff  # noqa: F401
from voxdiff import SliceConditionedPipeline  # noqa: F401
