#!/usr/bin/env bash
# GKD on pictures, Qwen3-VL-32B to Qwen3-VL-8B; forward KL, the vision tower stays frozen.
# Parallelism: TP 4 x DP 2. Hardware: 8 GPUs of 80 GB, 43 GB each before activations.
#   bash scripts/megatron_gkd_multimodal.sh
# DRY_RUN=1 prints the command, TINY=1 runs it on a laptop's CPU; flags behind it win.
# The same as a file: examples/megatron_gkd/multimodal.yaml
set -euo pipefail

MODEL=${MODEL:-Qwen/Qwen3-VL-8B-Instruct}
TEACHER_MODEL=${TEACHER_MODEL:-Qwen/Qwen3-VL-32B-Instruct}
DATASET=${DATASET:-AI-ModelScope/clevr_cogen_a_train#2000}
OUTPUT_DIR=${OUTPUT_DIR:-output/megatron_gkd/multimodal}
ENVIRONMENT=(NPROC_PER_NODE=${NPROC_PER_NODE:-8} IMAGE_MAX_TOKEN_NUM=${IMAGE_MAX_TOKEN_NUM:-1024})

MODELS=(
    --model "$MODEL" --model_type qwen3_vl --teacher_model "$TEACHER_MODEL" --teacher_model_type qwen3_vl
    --torch_dtype bfloat16 --template qwen3_vl --freeze_vit true --freeze_aligner true
)
DATA=(--dataset "$DATASET" --max_length 4096)
PARALLEL=(
    --tensor_model_parallel_size 4 --sequence_parallel true --micro_batch_size 1 --global_batch_size 32
    --recompute_granularity selective
)
LOSS=(--lmbda 0 --kd_divergence forward_kl --temperature 1.0)
TRAINING=(
    --lr 1e-05 --lr_warmup_fraction 0.05 --num_train_epochs 1 --save_steps 100 --no_save_optim true
    --no_save_rng true --logging_steps 5 --output_dir "$OUTPUT_DIR"
)

TINY_FLAGS=()
if [[ ${TINY:-0} == 1 ]]; then
    source "$(dirname "${BASH_SOURCE[0]}")/tiny.sh"
    TINY_FLAGS+=(
        --model ./output/tiny_models/vision --model_type qwen3_vl --teacher_model ./output/tiny_models/vision_large
        --teacher_model_type qwen3_vl --dataset ./output/tiny_models/pictures/pictures.jsonl --max_length 256
        --lr 0.0001 --kd_datasets ./examples/data/data.yaml
        --external_plugins swift_kd_plugin ./examples/without_torchvision.py
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
