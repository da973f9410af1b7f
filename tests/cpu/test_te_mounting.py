"""What the hosts find under the name `transformer_engine`, and what is refused by name."""

import importlib
import importlib.util
import subprocess
import sys

import pytest
import torch

from swift_kd_plugin.cpu import transformer_engine as package
from swift_kd_plugin.cpu.transformer_engine.public_names import MODULES
from swift_kd_plugin.cpu.transformer_engine.unsupported import NotOnCPUBackend

ABSENT = [
    "transformer_engine.pytorch.permutation",
    "transformer_engine.pytorch.cross_entropy",
    "transformer_engine.pytorch.cpu_offload",
    "transformer_engine.pytorch.router",
    "transformer_engine.pytorch.cpp_extensions",
    "transformer_engine.linear",  # a file of this folder, not a module of Transformer Engine
]


@pytest.fixture
def te(monkeypatch):
    for name in [name for name in sys.modules if name.split(".")[0] == "transformer_engine"]:
        monkeypatch.delitem(sys.modules, name)
    package.mount()
    yield importlib.import_module("transformer_engine")
    package.unmount()


def test_importing_the_package_loads_neither_torch_nor_megatron():
    # The folder's parent may import torch, so the module is loaded under its own name only.
    code = (
        "import sys, types, importlib.util as u\n"
        "for name in ('swift_kd_plugin', 'swift_kd_plugin.cpu'):\n"
        "    found = u.find_spec('swift_kd_plugin') if name == 'swift_kd_plugin' else None\n"
        "    sys.modules[name] = m = types.ModuleType(name)\n"
        "    m.__path__ = [found.submodule_search_locations[0] if found else root + '/cpu']\n"
        "    root = m.__path__[0]\n"
        "import swift_kd_plugin.cpu.transformer_engine as te; te.mount()\n"
        "assert not {'torch', 'megatron'} & set(sys.modules), sorted(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-S", "-c", f"import sys; sys.path[:0] = {sys.path!r}\n{code}"], check=True)


def test_every_public_name_exists(te):
    for module, names in MODULES.items():
        mounted = importlib.import_module(module)
        assert importlib.util.find_spec(module) is mounted.__spec__
        assert set(names) <= set(dir(mounted))
        for name in names:
            assert getattr(mounted, name) is not None
    assert te.__version__ == "2.6.0"


def test_what_is_left_out_is_an_import_error(te):
    for name in ABSENT:
        assert importlib.util.find_spec(name) is None
        with pytest.raises(ImportError):
            importlib.import_module(name)
    with pytest.raises(ImportError):
        from transformer_engine.pytorch import Float8Quantizer  # noqa: F401
    assert not hasattr(te.pytorch, "moe_permute")


def test_mounting_twice_and_unmounting(te):
    package.mount()
    assert importlib.import_module("transformer_engine") is te
    package.unmount()
    assert not [name for name in sys.modules if name.startswith("transformer_engine")]
    package.unmount()


def test_another_transformer_engine_is_left_alone(te, monkeypatch):
    package.unmount()
    monkeypatch.setitem(sys.modules, "transformer_engine", type(sys)("transformer_engine"))
    with pytest.raises(RuntimeError, match="already imported"):
        package.mount()


def test_fp8_off_works_and_on_is_refused(te):
    from transformer_engine.pytorch.fp8 import FP8GlobalStateManager

    with te.pytorch.fp8_autocast(enabled=False), te.pytorch.fp8_model_init(enabled=False):
        assert not FP8GlobalStateManager.is_fp8_enabled()
    recipe = te.common.recipe.DelayedScaling(margin=1, fp8_format=te.common.recipe.Format.HYBRID)
    assert recipe.margin == 1
    for context in (te.pytorch.fp8_autocast, te.pytorch.fp8_model_init):
        with pytest.raises(NotOnCPUBackend, match="drop --fp8_format"), context(enabled=True):
            pass
    for refused in (te.pytorch.Fp8Padding, te.pytorch.Fp8Unpadding):
        with pytest.raises(NotOnCPUBackend, match=refused.__name__):
            refused(4)


def test_other_refusals_name_the_operation(te):
    cases = [
        (te.pytorch.attention.rope.apply_rotary_pos_emb, "apply_rope_fusion"),
        (te.pytorch.module.base.initialize_ub, "tp_comm_overlap"),
        (te.pytorch.graph.make_graphed_callables, "make_graphed_callables"),
        (te.pytorch.utils.make_weak_ref, "make_weak_ref"),
        (te.pytorch.LayerNormMLP, "LayerNormMLP"),
        *((getattr(te.pytorch.ops, name), name) for name in MODULES["transformer_engine.pytorch.ops"]),
    ]
    for refused, hint in cases:
        with pytest.raises(NotImplementedError, match=hint):
            refused()
    assert not te.pytorch.attention.dot_product_attention.utils.FlashAttentionUtils.is_installed


def test_split_along_dim(te):
    x = torch.arange(24.0).view(2, 6, 2).requires_grad_()
    a, b = te.pytorch.attention._SplitAlongDim.apply(x, 1, [4, 2])
    assert torch.equal(a, x[:, :4])
    assert torch.equal(b, x[:, 4:])
    (b * torch.arange(8.0).view(2, 2, 2)).sum().backward()
    expected = torch.zeros(2, 6, 2)
    expected[:, 4:] = torch.arange(8.0).view(2, 2, 2)
    assert torch.equal(x.grad, expected)
