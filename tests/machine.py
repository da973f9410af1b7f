"""What this machine has, for tests that need it."""

import pytest

from tests.launching.commands import HAS_GPU

needs_cpu_backend = pytest.mark.skipif(HAS_GPU, reason="the CPU backend is for machines without a GPU")
