"""The entry point wakes for the plugin's name and for nothing else."""

import os
import subprocess
import sys
import textwrap

import pytest

from swift_kd_plugin._autoload import is_named


def run_python(code: str, *argv: str, folder=None, **env: str) -> subprocess.CompletedProcess:
    clean = {k: v for k, v in os.environ.items() if k != "SWIFT_KD_DEVICE"}
    command = [sys.executable, "-c", textwrap.dedent(code), *argv]
    return subprocess.run(command, capture_output=True, text=True, env={**clean, **env}, cwd=folder, check=False)


@pytest.mark.parametrize(
    "argv",
    [
        ["rlhf.py", "--external_plugins", "swift_kd_plugin"],
        ["rlhf.py", "--external_plugins", "other.py", "swift_kd_plugin", "--lr", "1"],
        ["rlhf.py", "--external-plugins=swift_kd_plugin"],
        ["rlhf.py", "--custom_register_path", "swift_kd_plugin"],
    ],
)
def test_finds_its_name(argv):
    assert is_named(argv)


@pytest.mark.parametrize(
    "argv",
    [
        ["rlhf.py"],
        ["rlhf.py", "--model", "swift_kd_plugin"],
        ["rlhf.py", "--external_plugins", "other.py", "--model", "swift_kd_plugin"],
        ["megatron", "rlhf", "missing.yaml"],
    ],
)
def test_is_silent_otherwise(argv):
    assert not is_named(argv)


@pytest.mark.parametrize("plugins", ["swift_kd_plugin", "[a.py, swift_kd_plugin]"])
def test_finds_its_name_in_a_config_file(tmp_path, plugins):
    config = tmp_path / "run.yaml"
    config.write_text(f"rlhf_type: gkd\nexternal_plugins: {plugins}\n")
    assert is_named(["/bin/megatron", "rlhf", str(config)])
    assert not is_named(["/bin/other", "rlhf", str(config)])


def test_a_json_file_may_be_indented_with_tabs(tmp_path):
    config = tmp_path / "run.json"
    config.write_text('{\n\t"external_plugins": "swift_kd_plugin"\n}\n')
    assert is_named(["/bin/megatron", "rlhf", str(config)])


def test_without_the_name_it_costs_under_5_ms(tmp_path):
    """As it is installed: in the folder of the sources, those would be compiled each time."""
    code = """
        import time
        start = time.perf_counter()
        from swift_kd_plugin._autoload import autoload
        autoload()
        print(time.perf_counter() - start)
    """
    runs = [run_python(code, folder=tmp_path) for _ in range(2)]
    assert min(float(run.stdout) for run in runs) < 0.005


def test_without_the_name_it_changes_nothing():
    code = """
        import sys
        before = [type(finder).__name__ for finder in sys.meta_path]
        import torch, swift.utils.utils
        assert [type(finder).__name__ for finder in sys.meta_path] == before
        ours = {name for name in sys.modules if name.startswith("swift_kd_plugin")}
        assert ours == {"swift_kd_plugin", "swift_kd_plugin.version", "swift_kd_plugin._autoload"}, ours
        assert swift.utils.utils.import_external_file.__module__ == "swift.utils.utils"
        assert torch.cuda.is_available.__module__ == "torch.cuda"
        from swift_kd_plugin.host.start.host_patches import HOST_LEDGER
        assert HOST_LEDGER.applied == []
    """
    run = run_python(code)
    assert run.returncode == 0, run.stderr


def test_torch_loads_the_entry_point():
    code = """
        import torch
        from swift_kd_plugin.host.start.host_patches import HOST_LEDGER
        import swift.utils.utils
        print(HOST_LEDGER.applied)
    """
    run = run_python(code, "--external_plugins", "swift_kd_plugin")
    assert "swift.utils.utils.import_external_file" in run.stdout, run.stderr


def test_wakes_when_torch_is_first_imported_by_an_awaited_module():
    # swift.utils.utils imports torch: it is being executed when the entry point runs.
    code = """
        import sys
        import swift.utils.utils
        assert "torch" in sys.modules
        from swift.utils import import_external_file
        import swift_kd_plugin
        assert import_external_file("swift_kd_plugin") is swift_kd_plugin
        assert swift.utils.utils.get_external_files() == ["swift_kd_plugin"]
    """
    run = run_python(code, "--external_plugins", "swift_kd_plugin")
    assert run.returncode == 0, run.stderr


def test_a_missing_autoload_is_said(tmp_path):
    run = run_python("import torch", "--external_plugins", "swift_kd_plugin", TORCH_DEVICE_BACKEND_AUTOLOAD="0")
    assert run.returncode == 1
    assert run.stderr.strip() == (
        "swift_kd_plugin: error: TORCH_DEVICE_BACKEND_AUTOLOAD=0 keeps torch from loading the plugin; "
        "unset it (or set it to 1) and start again."
    )
    other = run_python("import torch", TORCH_DEVICE_BACKEND_AUTOLOAD="0")
    assert other.returncode == 0, other.stderr


def test_an_unknown_device_is_refused():
    run = run_python("import torch", SWIFT_KD_DEVICE="tpu")
    assert run.returncode == 1
    assert "SWIFT_KD_DEVICE='tpu' is not known" in run.stderr


def test_spawned_workers_replay_the_plugin():
    code = """
        import sys
        from torch.utils.data import DataLoader

        class Rows:
            def __len__(self):
                return 2
            def __getitem__(self, index):
                import swift.utils.utils
                return swift.utils.utils.import_external_file.__module__

        if __name__ == "__main__":
            from swift.utils import import_external_file, patch_dataloader_external_plugins
            import_external_file("swift_kd_plugin")
            patch_dataloader_external_plugins()
            loader = DataLoader(Rows(), num_workers=1, multiprocessing_context="spawn")
            print(sorted({row for batch in loader for row in batch}))
    """
    import tempfile
    from pathlib import Path

    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "loader.py"
        file.write_text(textwrap.dedent(code))
        command = [sys.executable, str(file), "--external_plugins", "swift_kd_plugin"]
        run = subprocess.run(command, capture_output=True, text=True, check=False)
    # functools.wraps keeps stock's module name on the replacement: the replayed name resolved without an error.
    assert run.returncode == 0, run.stderr
    assert "swift.utils.utils" in run.stdout


@pytest.mark.parametrize(("command", "patched"), [("generate", False), ("eval", False), ("show", True)])
def test_what_drives_vllm_meets_a_cpu_as_it_is(command, patched):
    """It drives vLLM by itself, which only has to be told what it needs on a CPU."""
    code = f"""
        import os, sys
        sys.argv = ["/bin/swift-kd", "{command}"]
        import torch
        print(type(torch.cuda.is_available).__module__, torch.cuda.is_available.__module__, os.environ["VLLM_PLUGINS"])
    """
    run = run_python(code, SWIFT_KD_DEVICE="cpu")
    assert run.returncode == 0, run.stderr
    assert ("swift_kd_plugin" in run.stdout) == patched, run.stdout
    assert run.stdout.split()[-1] == "none"
