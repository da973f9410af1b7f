"""Patches as data: each names its symbol, why it is there and when it can go, and can be applied and undone by name.

A patch waits for the import of its module, so arming a ledger imports nothing.
"""

import importlib.abc
import importlib.machinery
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from types import ModuleType

Undo = Callable[[], None]


@dataclass(frozen=True)
class Patch:
    """One replaced symbol.

    Attributes:
        symbol: dotted path of what is replaced, for example `package.module.Class.method`.
        module: the module to wait for; `apply` gets it once it is loaded.
        why: why the host cannot be used as it is.
        remove_when: the condition under which this patch is to be deleted.
        apply: replaces the symbol and returns a function that puts the original back.
    """

    symbol: str
    module: str
    why: str
    remove_when: str
    apply: Callable[[ModuleType], Undo]


def replace_attribute(owner: object, name: str, new: object) -> Undo:
    """Sets `owner.name = new` and returns the way back. Raises AttributeError naming what is missing."""
    missing = object()
    # Through __dict__ where there is one, so that staticmethods and descriptors come back as they were.
    old = vars(owner).get(name, missing) if hasattr(owner, "__dict__") else getattr(owner, name, missing)
    if old is missing and not hasattr(owner, name):
        raise AttributeError(f"{owner!r} has no attribute {name!r}: this version of the host is not supported.")
    setattr(owner, name, new)

    def undo() -> None:
        if old is missing:
            delattr(owner, name)
        else:
            setattr(owner, name, old)

    return undo


def undo_all(undo: list[Undo]) -> Undo:
    """One way back for several replacements, newest first."""

    def undo_in_reverse() -> None:
        for step in reversed(undo):
            step()

    return undo_in_reverse


class Ledger:
    """A set of patches that can be armed (applied as their modules load) and undone, all together or one by one."""

    def __init__(self, patches: Iterable[Patch]):
        self.patches = list(patches)
        self._undo: dict[str, Undo] = {}
        self._armed = False

    @property
    def applied(self) -> list[str]:
        """The symbols that are replaced now, in the order of their application."""
        return list(self._undo)

    def arm(self) -> None:
        """Applies every patch whose module is loaded and lets the others wait. Arming twice changes nothing."""
        if self._armed:
            return
        self._armed = True
        for patch in self.patches:
            when_imported(patch.module, lambda module, patch=patch: self._apply(patch, module))

    def _apply(self, patch: Patch, module: ModuleType) -> None:
        if self._armed and patch.symbol not in self._undo:
            self._undo[patch.symbol] = patch.apply(module)

    def undo(self, symbol: str) -> None:
        """Puts the original of one applied patch back."""
        self._undo.pop(symbol)()

    def disarm(self) -> None:
        """Puts every original back, newest first; patches that still wait are not applied any more."""
        self._armed = False
        for symbol in reversed(self.applied):
            self.undo(symbol)


Callback = Callable[[ModuleType], None]
_waiting: dict[str, list[Callback]] = {}


def when_imported(name: str, callback: Callback) -> None:
    """Calls `callback(module)` when the module `name` has been executed: now, or at the end of its import."""
    module = sys.modules.get(name)
    spec = getattr(module, "__spec__", None)
    if module is not None and not getattr(spec, "_initializing", False):
        callback(module)
        return
    _waiting.setdefault(name, []).append(callback)
    if module is not None:
        _watch(spec)
    elif not any(isinstance(finder, _WatchingFinder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _WatchingFinder())


def _watch(spec: importlib.machinery.ModuleSpec) -> None:
    if type(spec) is importlib.machinery.ModuleSpec:
        spec.__class__ = _WatchedSpec


class _WatchedSpec(importlib.machinery.ModuleSpec):
    """A spec that tells when its module has been executed.

    The import system sets `_initializing` to False at the very end of an import, before the importing statement gets
    the module. This is the one moment that exists both for a module that is found later and for a module that is
    being executed right now (it imported torch, and torch woke us).
    """

    @property
    def _initializing(self) -> bool:
        return self.__dict__.get("_initializing", False)

    @_initializing.setter
    def _initializing(self, value: bool) -> None:
        self.__dict__["_initializing"] = value
        module = sys.modules.get(self.name)
        if value or module is None:
            return
        self.__class__ = importlib.machinery.ModuleSpec
        for callback in _waiting.pop(self.name, []):
            callback(module)


class _WatchingFinder(importlib.abc.MetaPathFinder):
    """Finds nothing by itself: marks the specs of awaited modules, found by the finders after it."""

    def find_spec(self, fullname, path=None, target=None):
        if fullname not in _waiting:
            return None
        for finder in sys.meta_path:
            if finder is self or not hasattr(finder, "find_spec"):
                continue
            spec = finder.find_spec(fullname, path, target)
            if spec is not None:
                _watch(spec)
                return spec
        return None
