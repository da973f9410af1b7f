import pytest
import torch


@pytest.fixture(scope="session")
def cpu_backend():
    """The host can be imported in this process: on a machine without a GPU the CPU backend is switched on."""
    if torch.cuda.is_available():
        yield
        return
    from swift_kd_plugin.cpu import LEDGER, switch_on

    switch_on()
    yield
    LEDGER.disarm()
