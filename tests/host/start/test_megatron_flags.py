"""The flags as the source declares them are those of the classes that it makes."""

from dataclasses import MISSING, fields
from typing import get_type_hints

import pytest
import torch

from swift_kd_plugin.host.start import megatron_flags as flags
from swift_kd_plugin.host.start.argument_class import extend_arguments

pytestmark = pytest.mark.usefixtures("cpu_backend")


@pytest.fixture(scope="module")
def real():
    from swift.megatron.arguments.rlhf_args import MegatronRLHFArguments

    return extend_arguments(MegatronRLHFArguments)


def test_every_flag_is_known_with_its_type(real):
    hints = get_type_hints(real)
    hints = {name: str | None if hint == torch.dtype | str | None else hint for name, hint in hints.items()}
    assert flags.megatron_flags() == {field.name: hints[field.name] for field in fields(real) if field.init}


def test_defaults_are_those_of_the_classes(real):
    """Where the source computes one (of the device, of the environment), it is None."""
    defaults = flags.megatron_defaults()
    made = {
        field.name: field.default if field.default_factory is MISSING else field.default_factory()
        for field in fields(real)
        if field.init
    }
    assert set(defaults) == set(made)
    other = {name: (defaults[name], made[name]) for name in made if defaults[name] != made[name]}
    assert all(read is None for read, _ in other.values()), other
    assert len(other) < 5, other


def test_a_version_that_is_built_otherwise_is_refused(monkeypatch):
    monkeypatch.setattr(flags, "FOLDERS", ("megatron/arguments",))
    with pytest.raises(ValueError, match="has no class BaseArguments"):
        flags._declarations.__wrapped__()
