#!/usr/bin/env bash
# GKD with the teacher behind a server, Qwen3-32B to Qwen3-8B: forward KL on its 64 most probable tokens. Start it
# first:
#   swift deploy --model Qwen/Qwen3-32B --infer_backend vllm --use_chat_template false --max_logprobs 64 \
#       --vllm_tensor_parallel_size 2 --vllm_max_model_len 4097 --port 8000
# Parallelism: TP 2 x DP 4. Hardware: 8 GPUs of 80 GB, 37 GB each before activations; and the server's.
# TEACHER is its address. With TINY=1 the server has examples/base_model (examples/megatron_gkd/README.md).
#   bash scripts/megatron_gkd_teacher_server.sh
# DRY_RUN=1 prints the command, TINY=1 runs it on a laptop's CPU; flags behind it win.
# The same as a file: examples/megatron_gkd/teacher_server.yaml
set -euo pipefail

MODEL=${MODEL:-Qwen/Qwen3-8B}
DATASET=(${DATASET:-AI-ModelScope/alpaca-gpt4-data-en#2000 AI-ModelScope/alpaca-gpt4-data-zh#2000})
OUTPUT_DIR=${OUTPUT_DIR:-output/megatron_gkd/teacher_server}
TEACHER=${TEACHER:-http://127.0.0.1:8000}
ENVIRONMENT=(NPROC_PER_NODE=${NPROC_PER_NODE:-8})

MODELS=(
    --model "$MODEL" --model_type qwen3 --teacher_model_server "$TEACHER" --kd_topk 64 --torch_dtype bfloat16
    --template qwen3 --enable_thinking false
)
DATA=(--dataset "${DATASET[@]}" --max_length 4096)
PARALLEL=(
    --tensor_model_parallel_size 2 --sequence_parallel true --micro_batch_size 1 --global_batch_size 32
    --recompute_granularity selective
)
LOSS=(--lmbda 0 --kd_divergence forward_kl --temperature 1.0)
TRAINING=(
    --lr 1e-05 --lr_warmup_fraction 0.05 --num_train_epochs 1 --save_steps 100 --no_save_optim true
    --no_save_rng true --logging_steps 5 --output_dir "$OUTPUT_DIR"
)

TINY_FLAGS=()
if [[ ${TINY:-0} == 1 ]]; then
    WITH_SERVER=1
    source "$(dirname "${BASH_SOURCE[0]}")/tiny.sh"
    TINY_FLAGS+=(--dataset 'pairs#32' --lr 0.0001 --kd_datasets ./examples/data/data.yaml)
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
