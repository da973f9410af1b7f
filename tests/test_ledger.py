"""Patches wait for their module, are applied once, and go away again."""

import importlib
import sys
from types import SimpleNamespace

import pytest

from swift_kd_plugin import ledger
from swift_kd_plugin.ledger import Ledger, Patch, replace_attribute


def double(module):
    return replace_attribute(module, "value", lambda: 2)


def make_module(folder, monkeypatch, text: str = "def value():\n    return 1\n", name: str = "awaited_module"):
    (folder / f"{name}.py").write_text(text)
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.delitem(sys.modules, name, raising=False)
    return name


def make_ledger(name: str) -> Ledger:
    return Ledger([Patch(symbol=f"{name}.value", module=name, why="test", remove_when="never", apply=double)])


def test_waits_for_the_import_and_is_undone(tmp_path, monkeypatch):
    name = make_module(tmp_path, monkeypatch)
    patches = make_ledger(name)
    patches.arm()
    patches.arm()
    assert patches.applied == []

    module = importlib.import_module(name)
    assert module.value() == 2
    assert patches.applied == [f"{name}.value"]

    patches.disarm()
    assert module.value() == 1
    assert patches.applied == []


def test_is_applied_at_once_to_a_loaded_module(tmp_path, monkeypatch):
    module = importlib.import_module(make_module(tmp_path, monkeypatch))
    patches = make_ledger(module.__name__)
    patches.arm()
    assert module.value() == 2
    patches.undo(f"{module.__name__}.value")
    assert module.value() == 1


def test_is_applied_at_the_end_of_an_import_that_is_under_way(tmp_path, monkeypatch):
    text = "import armed_by_me\nearly = armed_by_me.patches.applied\ndef value():\n    return 1\n"
    name = make_module(tmp_path, monkeypatch, text)
    patches = make_ledger(name)
    arming = "import sys\npatches = sys.modules['tests_ledger_box'].patches\npatches.arm()\n"
    make_module(tmp_path, monkeypatch, arming, "armed_by_me")
    monkeypatch.setitem(sys.modules, "tests_ledger_box", SimpleNamespace(patches=patches))

    module = importlib.import_module(name)
    assert module.early == []
    assert module.value() == 2
    assert type(module.__spec__) is importlib.machinery.ModuleSpec


def test_a_failed_import_leaves_the_patch_waiting(tmp_path, monkeypatch):
    name = make_module(tmp_path, monkeypatch, "raise ValueError('broken')\n")
    patches = make_ledger(name)
    patches.arm()
    with pytest.raises(ValueError, match="broken"):
        importlib.import_module(name)
    assert patches.applied == []

    make_module(tmp_path, monkeypatch)
    importlib.invalidate_caches()
    assert importlib.import_module(name).value() == 2


def test_a_missing_symbol_is_named():
    with pytest.raises(AttributeError, match="has no attribute 'absent'"):
        replace_attribute(SimpleNamespace(), "absent", 1)


def test_a_staticmethod_comes_back_as_one():
    class Owner:
        @staticmethod
        def value():
            return 1

    undo = replace_attribute(Owner, "value", staticmethod(lambda: 2))
    assert Owner.value() == 2
    undo()
    assert isinstance(vars(Owner)["value"], staticmethod)
    assert Owner().value() == 1


def test_an_inherited_attribute_is_not_left_behind():
    class Base:
        value = 1

    class Owner(Base):
        pass

    replace_attribute(Owner, "value", 2)()
    assert "value" not in vars(Owner)
    assert Owner.value == 1


def test_nothing_waits_twice(tmp_path, monkeypatch):
    name = make_module(tmp_path, monkeypatch)
    patches = make_ledger(name)
    patches.arm()
    patches.arm()
    importlib.import_module(name)
    assert name not in ledger._waiting


def test_a_disarmed_patch_is_not_applied_later(tmp_path, monkeypatch):
    name = make_module(tmp_path, monkeypatch)
    patches = make_ledger(name)
    patches.arm()
    patches.disarm()
    assert importlib.import_module(name).value() == 1
