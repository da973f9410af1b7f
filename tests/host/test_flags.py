"""The flags as the source declares them are those of the classes that it makes."""

from dataclasses import fields
from typing import get_type_hints

import pytest
import torch

from swift_kd_plugin.host import flags
from swift_kd_plugin.host.arguments import extend_arguments

pytestmark = pytest.mark.usefixtures("cpu_backend")


@pytest.fixture(scope="module")
def real():
    from swift.megatron.arguments.rlhf_args import MegatronRLHFArguments

    return extend_arguments(MegatronRLHFArguments)


def test_every_flag_is_known_with_its_type(real):
    hints = get_type_hints(real)
    hints = {name: str | None if hint == torch.dtype | str | None else hint for name, hint in hints.items()}
    assert flags.megatron_flags() == {field.name: hints[field.name] for field in fields(real) if field.init}


def test_a_version_that_is_built_otherwise_is_refused(monkeypatch):
    monkeypatch.setattr(flags, "FOLDERS", ("megatron/arguments",))
    with pytest.raises(ValueError, match="has no class BaseArguments"):
        flags.megatron_flags.__wrapped__()
