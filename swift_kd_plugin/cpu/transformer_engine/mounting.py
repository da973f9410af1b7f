"""Puts this folder into `sys.modules` under the name `transformer_engine`, and takes it out again."""

import sys
from importlib import import_module
from importlib.machinery import ModuleSpec
from types import ModuleType

from swift_kd_plugin.cpu.transformer_engine.public_names import MODULES

TE_PACKAGE = "transformer_engine"


class LazyModule(ModuleType):
    """A public module whose names are loaded on first use.

    It has no search path: a submodule that `public_names` does not list raises ModuleNotFoundError.
    """

    def __init__(self, name: str, targets: dict[str, str]) -> None:
        super().__init__(name, "Transformer Engine in pure PyTorch")
        self.__path__ = []
        self.__spec__ = ModuleSpec(name, loader=None, origin=__package__, is_package=True)
        self._targets = targets

    def __getattr__(self, name: str):
        targets = self.__dict__.get("_targets", {})
        if name not in targets:
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r} on the CPU backend")
        file, attribute = targets[name].split(".")
        value = getattr(import_module(f"{__package__}.{file}"), attribute)
        setattr(self, name, value)
        return value

    def __dir__(self) -> list[str]:
        return sorted({*super().__dir__(), *self._targets})


def mount() -> None:
    """Makes `import transformer_engine` find this folder. Idempotent.

    Raises:
        RuntimeError: another Transformer Engine is already imported, so some host may hold its classes.
    """
    present = sys.modules.get(TE_PACKAGE)
    if isinstance(present, LazyModule):
        return
    if present is not None:
        raise RuntimeError(
            f"transformer_engine is already imported from {getattr(present, '__file__', 'an unknown place')}: "
            "mount the pure-PyTorch one before anything imports it"
        )
    for name, targets in MODULES.items():
        module = LazyModule(name, targets)
        parent, _, child = name.rpartition(".")
        if parent:
            setattr(sys.modules[parent], child, module)
        sys.modules[name] = module


def unmount() -> None:
    """Removes what `mount` put in. Hosts that were imported in between keep their references. Idempotent."""
    for name in MODULES:
        if isinstance(sys.modules.get(name), LazyModule):
            del sys.modules[name]
