#!/usr/bin/env bash
# Qwen2.5-7B with a LoRA adapter to Qwen1.5-1.8B: the teacher answers a 70/30 mix offline, then the student learns
# from answers and probabilities (0.5 CE + 0.5 T² KL, T 2). `swift-kd train` runs the stages; DRY_RUN=1 prints the
# plain command of each.
# Parallelism: none. Hardware: one GPU of 40 GB, 26 GB before activations, and 29 GB of CPU memory.
#   ADAPTER=FOLDER bash scripts/qwen25_lora_to_small.sh
# STAGE is all, generate, off_policy or check; TINY=1 runs it on a laptop's CPU; key=value behind it wins.
set -euo pipefail

ARGUMENTS=(--stage "${STAGE:-all}")
if [[ ${TINY:-0} == 0 ]]; then
    ARGUMENTS+=("kd_teacher_adapters=[${ADAPTER:?must be the folder of a LoRA adapter of the teacher}]")
fi
if [[ ${DRY_RUN:-0} == 1 ]]; then
    ARGUMENTS+=(--dry_run)
elif [[ ${TINY:-0} == 1 && ! -d output/tiny_models ]]; then
    python examples/tiny_models.py
fi
exec swift-kd train examples/qwen25_lora_to_small/run.yaml "${ARGUMENTS[@]}" "$@"
