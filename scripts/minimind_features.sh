#!/usr/bin/env bash
# MiniMind's distillation on conversations, Qwen3-8B to Qwen3-0.6B, with feature matching: alpha CE + (1 - alpha) T² KL +
# weight x (1 - cosine) of the hidden states of four pairs of layers, whose weight goes from 1 to 0; the temperature from
# 5 to 1, the rate along a cosine to a tenth, with a validation loss.
# Parallelism: DP 8. Hardware: 8 GPUs of 80 GB, 21 GB each before activations, and 1.0 GB of features.
#   bash scripts/minimind_features.sh
# DRY_RUN=1 prints the command, TINY=1 runs it on a laptop's CPU; flags behind it win.
# The same as a file: examples/minimind/features.yaml
set -euo pipefail

MODEL=${MODEL:-Qwen/Qwen3-0.6B}
TEACHER_MODEL=${TEACHER_MODEL:-Qwen/Qwen3-8B}
DATASET=${DATASET:-conversations.jsonl}
OUTPUT_DIR=${OUTPUT_DIR:-output/minimind/features}
ENVIRONMENT=(NPROC_PER_NODE=${NPROC_PER_NODE:-8})

MODELS=(
    --model "$MODEL" --model_type qwen3 --teacher_model "$TEACHER_MODEL" --teacher_model_type qwen3
    --torch_dtype bfloat16 --template qwen3 --enable_thinking false
)
DATA=(--dataset "$DATASET" --split_dataset_ratio 0.01 --max_length 2048)
PARALLEL=(
    --tensor_model_parallel_size 1 --sequence_parallel true --micro_batch_size 4 --global_batch_size 128
    --recompute_granularity selective
)
LOSS=(
    --lmbda 0 --loss_scale default --kd_divergence forward_kl --kd_ce_alpha 0.5 --kd_temperature 5.0
    --kd_temperature_final 1.0 --kd_schedule linear --kd_feature_weight 1.0 --kd_feature_weight_final 0.0
    --kd_feature_layers auto --kd_feature_loss cosine
)
TRAINING=(
    --lr 5e-05 --min_lr 5e-06 --lr_decay_style cosine --num_train_epochs 3 --eval_steps 100 --save_steps 100
    --save_total_limit 2 --no_save_optim true --no_save_rng true --logging_steps 10 --output_dir "$OUTPUT_DIR"
)

TINY_FLAGS=()
if [[ ${TINY:-0} == 1 ]]; then
    source "$(dirname "${BASH_SOURCE[0]}")/tiny.sh"
    TINY_FLAGS+=(
        --dataset './examples/data/conversations.jsonl#32' --split_dataset_ratio 0.25 --lr 0.001 --min_lr 0.0001
        --eval_steps 3 --save_steps 3 --model ./output/tiny_models/small
    )
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
