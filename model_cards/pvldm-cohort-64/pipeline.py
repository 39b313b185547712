import voxdiff  # noqa: F401
from voxdiff import PatchVolumeLDMPipeline  # noqa: F401
