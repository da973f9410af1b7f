"""Transformer Engine in pure PyTorch, so that Megatron-Core, mcore-bridge and ms-swift run without it.

`mount()` puts the modules under the name `transformer_engine`; nothing here is loaded before a host uses it. The layers
compute on whatever device the host passes, so they also serve a machine with a GPU and no Transformer Engine.
"""

from swift_kd_plugin.cpu.transformer_engine.mounting import mount, unmount
from swift_kd_plugin.cpu.transformer_engine.public_names import VERSION as __version__

__all__ = ["__version__", "mount", "unmount"]
