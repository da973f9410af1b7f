#!/usr/bin/env bash
# bitsandbytes 0.50.2 (torch 2.13.0, CPU with AVX-512): functional.dequantize_4bit gives back other weights than
# quantize_4bit took, without a word, where the last dimension is a multiple of 16 and not of the blocksize: blocks are
# made along the flat tensor, and the AVX-512 kernel counts floor(width / blocksize) scales a row. CUDA, CPUs without
# AVX-512 and other widths go along the flat tensor. Widths that occur: 96, 608 (4,864 / 8), 7,392 (29,568 / 4, the
# down projection of a 72B Qwen2.5 over 4 ranks). With the shape [values / blocksize, blocksize] in the state, all are right; so is
# what bitsandbytes.nn.Linear4bit computes on a CPU.
# Seen 2026-11-30, relative error of NF4 in fp32, blocksize 64, by width of 64 rows, AVX-512:
# "128: 0.092; 96: 0.266, in blocks 0.092; 608: 0.251, in blocks 0.092; 50: 0.092".
# A CPU without AVX-512 has nothing to show: exit code 1, and it says so.
# TORCH_INDEX_URL names an index with CPU builds of torch where pip's own has none.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet ${TORCH_INDEX_URL:+--extra-index-url "$TORCH_INDEX_URL"} "torch==2.13.0+cpu" numpy
"$folder/venv/bin/pip" install --quiet "bitsandbytes==0.50.2"
cat > "$folder/rows.py" <<'PY'
import sys

import torch
from bitsandbytes.functional import dequantize_4bit, quantize_4bit

capability = torch.backends.cpu.get_cpu_capability()
if capability != "AVX512":
    sys.exit(f"this CPU has {capability}; the fault is in the kernel for AVX512")
torch.manual_seed(0)
said, as_seen = [], True
for width, wrong in ((128, False), (96, True), (608, True), (50, False)):
    weight = torch.randn(64, width)
    codes, state = quantize_4bit(weight, blocksize=64, quant_type="nf4")
    error = float((dequantize_4bit(codes, state) - weight).norm() / weight.norm())
    said.append(f"{width}: {error:.3f}")
    as_seen &= (error > 0.2) == wrong
    if wrong:
        state.shape = torch.Size((weight.numel() // 64, 64))
        error = float((dequantize_4bit(codes, state).view(64, width) - weight).norm() / weight.norm())
        said[-1] += f", in blocks {error:.3f}"
        as_seen &= error < 0.1
print("; ".join(said))
sys.exit(0 if as_seen else 1)
PY
"$folder/venv/bin/python" "$folder/rows.py"
