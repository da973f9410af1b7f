"""An external plugin: qwen_vl_utils on a machine without torchvision, for the tiny runs of vision models.

ms-swift prepares Qwen's pictures with qwen_vl_utils, which imports torchvision when it is loaded but uses it for videos
only. Where torchvision is missing (pip has it as a CUDA build, which a CPU build of torch cannot load), empty modules
stand in for it during that one import and go away after: pictures take their usual way, a video ends in an error.
"""

import sys
from importlib.util import find_spec
from types import ModuleType


def stand_in() -> dict[str, ModuleType]:
    names = ("torchvision", "torchvision.io", "torchvision.transforms")
    torchvision, io, transforms = modules = [ModuleType(name) for name in names]
    torchvision.io, torchvision.transforms = io, transforms
    transforms.InterpolationMode = None
    return dict(zip(names, modules, strict=True))


if find_spec("torchvision") is None:
    modules = stand_in()
    sys.modules.update(modules)
    import qwen_vl_utils  # noqa: F401

    for name in modules:
        del sys.modules[name]
