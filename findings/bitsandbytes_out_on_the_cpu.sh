#!/usr/bin/env bash
# bitsandbytes 0.50.2 (torch 2.13.0, CPU): functional.dequantize_4bit and dequantize_blockwise run on the CPU, and their
# signatures take `out=`, but with it they raise NotImplementedError: the operators with `.out` have kernels on GPUs
# alone. Code that dequantises into one buffer to save memory works on a GPU and fails on every machine without one;
# a copy_ of the plain call's result works on both.
# Seen 2026-11-30: "dequantize_4bit: plain True, out= NotImplementedError; dequantize_blockwise: plain True, out= NotImplementedError".
# TORCH_INDEX_URL names an index with CPU builds of torch where pip's own has none.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet ${TORCH_INDEX_URL:+--extra-index-url "$TORCH_INDEX_URL"} "torch==2.13.0+cpu" numpy
"$folder/venv/bin/pip" install --quiet "bitsandbytes==0.50.2"
cat > "$folder/out.py" <<'PY'
import sys

import torch
from bitsandbytes import functional

weight = torch.randn(64, 128)
pairs = (
    (functional.dequantize_4bit, functional.quantize_4bit(weight, blocksize=64, quant_type="nf4")),
    (functional.dequantize_blockwise, functional.quantize_blockwise(weight, blocksize=64)),
)
said, as_seen = [], True
for dequantize, (codes, state) in pairs:
    plain = bool((dequantize(codes, state) - weight).abs().max() < 1)
    try:
        dequantize(codes, state, out=torch.empty_like(weight))
        out = "works"
    except NotImplementedError:
        out = "NotImplementedError"
    said.append(f"{dequantize.__name__}: plain {plain}, out= {out}")
    as_seen &= plain and out == "NotImplementedError"
print("; ".join(said))
sys.exit(0 if as_seen else 1)
PY
"$folder/venv/bin/python" "$folder/out.py"
