"""fp8 as far as the hosts ask about it: it is off, its recipes can be named, and switching it on is refused."""

import enum
from collections.abc import Iterator
from contextlib import contextmanager

from swift_kd_plugin.cpu.transformer_engine.unsupported import refuse

_DROP_FP8 = "drop --fp8_format (and --fp4_format, --fp8_param_gather)"


def _refuse_if_enabled(operation: str, enabled: bool) -> None:
    if enabled:
        refuse(f"fp8 ({operation})", _DROP_FP8)


@contextmanager
def fp8_autocast(enabled: bool = True, **_options) -> Iterator[None]:
    """Does nothing if not enabled. Raises NotOnCPUBackend otherwise."""
    _refuse_if_enabled("fp8_autocast", enabled)
    yield


@contextmanager
def fp8_model_init(enabled: bool = True, recipe=None, preserve_high_precision_init_val: bool = False) -> Iterator[None]:
    """Does nothing if not enabled. Raises NotOnCPUBackend otherwise."""
    _refuse_if_enabled("fp8_model_init", enabled)
    yield


class FP8GlobalStateManager:
    """The state of a run in which fp8 is never on."""

    @classmethod
    def is_fp8_enabled(cls) -> bool:
        return False

    @classmethod
    def is_fp8_calibration(cls) -> bool:
        return False

    @classmethod
    def is_first_fp8_module(cls) -> bool:
        return False

    @classmethod
    def get_fp8_recipe(cls) -> None:
        return None

    @classmethod
    def get_fp8_group(cls) -> None:
        return None

    @classmethod
    def reset(cls) -> None:
        """There is no state."""

    @classmethod
    def set_skip_fp8_weight_update_tensor(cls, *_args) -> None:
        """There are no fp8 weights."""

    @classmethod
    def reduce_and_update_fp8_tensors(cls, *_args, **_kwargs) -> None:
        """There are no fp8 scales."""

    @classmethod
    def add_fp8_tensors_to_global_buffer(cls, *_args, **_kwargs) -> None:
        """There are no fp8 scales."""


class Format(enum.Enum):
    """Names of the fp8 number formats."""

    E4M3 = "e4m3"
    E5M2 = "e5m2"
    HYBRID = "hybrid"


class Recipe:
    """Settings of an fp8 or fp4 run; they can be written down here, not used."""

    def __init__(self, **settings) -> None:
        vars(self).update(settings)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in vars(self).items())})"


class DelayedScaling(Recipe):
    """Scales from the history of maxima."""


class Float8CurrentScaling(Recipe):
    """One scale per tensor, from its own maximum."""


class Float8BlockScaling(Recipe):
    """One scale per block of a tensor."""


class MXFP8BlockScaling(Recipe):
    """One power-of-two scale per 32 values."""


class NVFP4BlockScaling(Recipe):
    """fp4 with one scale per 16 values."""


class QuantizedTensor:
    """No tensor is an instance: the hosts test parameters for it."""

    def __init__(self, *_args, **_kwargs) -> None:
        refuse(f"fp8 ({type(self).__name__})", _DROP_FP8)


class Float8Tensor(QuantizedTensor):
    """See QuantizedTensor."""


class MXFP8Tensor(QuantizedTensor):
    """See QuantizedTensor."""


class Fp8Padding:
    """Refused on use: Megatron-Core builds it in an fp8 run only."""

    def __init__(self, *_args, **_kwargs) -> None:
        refuse(f"fp8 ({type(self).__name__})", _DROP_FP8)


class Fp8Unpadding(Fp8Padding):
    """See Fp8Padding."""
