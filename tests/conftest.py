"""Tiers of the tests, by folder, and what runs one after the other on one worker."""

import filecmp
import os
import signal
from functools import cache
from importlib.metadata import distribution
from pathlib import Path

import pytest
import torch

from tests.paths import ROOT

HERE = Path(__file__).parent
# The folders whose tests start `megatron`, servers or vLLM; all others are `quick`.
LAUNCHING = ("launching", "parity", "runs")
TIERS = {"launch": "starts the command, a server or vLLM", "quick": "starts none of these"}


def pytest_configure(config: pytest.Config) -> None:
    # A shell that starts the tests in the background ignores SIGINT, and so would all that they start.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for name, meaning in TIERS.items():
        config.addinivalue_line("markers", f"{name}: {meaning}")
    config.option.durations = 25 if config.option.durations is None else config.option.durations


@pytest.hookimpl(tryfirst=True)  # before xdist reads the groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Each test gets its tier and its group; those that launch come first, so that both workers are busy to the end."""
    for item in items:
        item.add_marker(tier_of(item))
        item.add_marker(pytest.mark.xdist_group(group_of(item)))
    items.sort(key=lambda item: item.get_closest_marker("launch") is None)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_node_collection_finished(node, ids: list[str]) -> None:
    """pytest-xdist hands a group on as the end of a test's id; where that is lost, it distributes tests one by one."""
    if node.config.getoption("dist") == "loadgroup" and not all("@" in name for name in ids):
        pytest.exit(f"pytest {pytest.__version__} takes no groups from pytest-xdist: make install brings one that does")


def pytest_runtest_setup(item: pytest.Item) -> None:
    if tier_of(item) == "launch" and (other := first_that_is_not_installed()):
        pytest.fail(
            f"what is started would be another package than this checkout ({other}): make install", pytrace=False
        )


@cache
def first_that_is_not_installed() -> Path | None:
    """A file of the package that is not the installed one."""
    site = Path(distribution("swift_kd_plugin").locate_file(""))
    for file in sorted((ROOT / "swift_kd_plugin").rglob("*.py")):
        name = file.relative_to(ROOT)
        if not (site / name).exists() or not filecmp.cmp(file, site / name):
            return name
    return None


def tier_of(item: pytest.Item) -> str:
    return "launch" if item.path.relative_to(HERE).parts[0] in LAUNCHING else "quick"


def group_of(item: pytest.Item) -> str:
    """A file, as its tests share what was trained; a family of layouts has a reference of its own, a page commands."""
    params = item.callspec.params if hasattr(item, "callspec") else {}
    family = getattr(params.get("layout"), "reference", None) or launched_page(item, params)
    return f"{item.path.relative_to(HERE)} {family or ''}".strip()


def launched_page(item: pytest.Item, params: dict) -> str | None:
    """Commands of one page run one after the other, those of two pages beside each other."""
    return params.get("page") if tier_of(item) == "launch" else None


@pytest.fixture(autouse=True)
def environ_stays_the_same_object():
    """`Dataset.map` with num_proc puts a copy into its place, on which monkeypatch undoes nothing (datasets 4.8.4)."""
    environ = os.environ
    yield
    os.environ = environ  # noqa: B003 (it is the object that is put back)


@pytest.fixture(scope="session")
def cpu_backend():
    """The host can be imported in this process: on a machine without a GPU the CPU backend is switched on."""
    if torch.cuda.is_available():
        yield
        return
    from swift_kd_plugin.cpu import CPU_LEDGER, switch_on

    switch_on()
    yield
    CPU_LEDGER.disarm()
