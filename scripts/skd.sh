#!/usr/bin/env bash
# Supervised distillation (SKD), Qwen3-8B to itself: forward KL to the teacher, which alone sees the experience, at
# each token of the given answers.
# Parallelism: TP 2 x DP 4. Hardware: 8 GPUs of 80 GB, 45 GB each before activations.
#   bash scripts/skd.sh
# DRY_RUN=1 prints the command, TINY=1 runs it on a laptop's CPU; flags behind it win.
# The same as a file: examples/internalize_experience/skd.yaml
set -euo pipefail

MODEL=${MODEL:-Qwen/Qwen3-8B}
TEACHER_MODEL=${TEACHER_MODEL:-$MODEL}
DATASET=${DATASET:-pairs}
OUTPUT_DIR=${OUTPUT_DIR:-output/internalize_experience/skd}
DATASETS=${DATASETS:-examples/internalize_experience/data.yaml}
TEACHER_CACHE=${TEACHER_CACHE:-output/teacher_cache}
ENVIRONMENT=(NPROC_PER_NODE=${NPROC_PER_NODE:-8})

MODELS=(
    --model "$MODEL" --model_type qwen3 --teacher_model "$TEACHER_MODEL" --teacher_model_type qwen3
    --torch_dtype bfloat16 --template qwen3 --enable_thinking false
)
DATA=(--kd_datasets "$DATASETS" --dataset "$DATASET" --max_length 4096)
PARALLEL=(
    --tensor_model_parallel_size 2 --sequence_parallel true --micro_batch_size 1 --global_batch_size 32
    --recompute_granularity selective
)
LOSS=(--lmbda 0 --kd_divergence forward_kl --temperature 1.0 --kd_teacher_cache "$TEACHER_CACHE")
TRAINING=(
    --lr 2e-05 --lr_warmup_fraction 0.1 --num_train_epochs 3 --save_strategy epoch --no_save_optim true
    --no_save_rng true --logging_steps 5 --output_dir "$OUTPUT_DIR"
)

TINY_FLAGS=()
if [[ ${TINY:-0} == 1 ]]; then
    source "$(dirname "${BASH_SOURCE[0]}")/tiny.sh"
    TINY_FLAGS+=(--micro_batch_size 16 --global_batch_size 32 --lr 0.001)
fi

COMMAND=(
    env "${ENVIRONMENT[@]}" megatron rlhf --rlhf_type gkd --external_plugins swift_kd_plugin
    "${MODELS[@]}" "${DATA[@]}" "${PARALLEL[@]}" "${LOSS[@]}" "${TRAINING[@]}" "${TINY_FLAGS[@]}" "$@"
)
if [[ ${DRY_RUN:-0} == 1 ]]; then
    printf "%q " "${COMMAND[@]}"
    echo
else
    exec "${COMMAND[@]}"
fi
