#!/usr/bin/env bash
# Strong to weak in stages, Qwen3-235B-A22B to Qwen3-8B: the teacher answers in both thinking modes, the student
# learns from the answers (forward KL, T 3), then from the teacher's judgement of its own (reverse KL, T 2). Each
# stage starts from the best checkpoint of the one before, so `swift-kd train` runs them; DRY_RUN=1 prints the plain
# command of each.
# Parallelism: TP 4 x DP 2, vLLM TP 4. Hardware: 8 GPUs of 80 GB, 25 GB each before activations, and the teacher's
# server:
#   vllm serve Qwen/Qwen3-235B-A22B-FP8 --tensor-parallel-size 4 --max-logprobs 64 --max-model-len 8193
#   TEACHER=http://HOST:8000 DATASET=questions.jsonl bash scripts/strong_to_weak.sh
# STAGE is all, generate, off_policy, on_policy or check; TINY=1 runs it on a laptop's CPU; key=value behind it wins.
set -euo pipefail

ARGUMENTS=(--stage "${STAGE:-all}")
if [[ ${TINY:-0} == 0 ]]; then
    ARGUMENTS+=("dataset=${DATASET:-questions.jsonl}")
fi
if [[ ${DRY_RUN:-0} == 1 ]]; then
    ARGUMENTS+=(--dry_run)
fi
exec swift-kd train examples/strong_to_weak/run.yaml "${ARGUMENTS[@]}" "$@"
