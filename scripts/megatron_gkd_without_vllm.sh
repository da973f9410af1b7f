#!/usr/bin/env bash
# GKD on-policy without vLLM, Qwen3-32B to Qwen3-8B: the student writes with transformers; reverse KL.
# Parallelism: TP 4 x DP 2. Hardware: 8 GPUs of 80 GB, 57 GB each before activations.
#   bash scripts/megatron_gkd_without_vllm.sh
# DRY_RUN=1 prints the command, TINY=1 runs it on a laptop's CPU; flags behind it win.
# The same as a file: examples/megatron_gkd/without_vllm.yaml
set -euo pipefail

MODEL=${MODEL:-Qwen/Qwen3-8B}
TEACHER_MODEL=${TEACHER_MODEL:-Qwen/Qwen3-32B}
DATASET=(${DATASET:-AI-ModelScope/alpaca-gpt4-data-en#2000 AI-ModelScope/alpaca-gpt4-data-zh#2000})
OUTPUT_DIR=${OUTPUT_DIR:-output/megatron_gkd/without_vllm}
ENVIRONMENT=(NPROC_PER_NODE=${NPROC_PER_NODE:-8})

MODELS=(
    --model "$MODEL" --model_type qwen3 --teacher_model "$TEACHER_MODEL" --teacher_model_type qwen3
    --torch_dtype bfloat16 --template qwen3 --enable_thinking false
)
DATA=(--dataset "${DATASET[@]}" --max_length 4096)
PARALLEL=(
    --tensor_model_parallel_size 4 --sequence_parallel true --micro_batch_size 1 --global_batch_size 32
    --recompute_granularity selective
)
LOSS=(--lmbda 1 --kd_divergence reverse_kl --temperature 1.0)
SAMPLING=(--use_vllm false --kd_student_engine transformers --max_completion_length 1024)
TRAINING=(
    --lr 1e-05 --lr_warmup_fraction 0.05 --num_train_epochs 1 --save_steps 100 --no_save_optim true
    --no_save_rng true --logging_steps 5 --output_dir "$OUTPUT_DIR"
)

TINY_FLAGS=()
if [[ ${TINY:-0} == 1 ]]; then
    source "$(dirname "${BASH_SOURCE[0]}")/tiny.sh"
    TINY_FLAGS+=(
        --dataset 'pairs#32' --lr 0.0001 --max_completion_length 16 --kd_datasets ./examples/data/data.yaml
    )
fi

COMMAND=(
    env "${ENVIRONMENT[@]}" megatron rlhf --rlhf_type gkd --external_plugins swift_kd_plugin
    "${MODELS[@]}" "${DATA[@]}" "${PARALLEL[@]}" "${LOSS[@]}" "${SAMPLING[@]}" "${TRAINING[@]}" "${TINY_FLAGS[@]}" "$@"
)
if [[ ${DRY_RUN:-0} == 1 ]]; then
    printf "%q " "${COMMAND[@]}"
    echo
else
    exec "${COMMAND[@]}"
fi
