#!/usr/bin/env bash
# GKD on-policy with vLLM on GPUs of its own, Qwen3-32B to Qwen3-8B; reverse KL. Start the writer first:
#   CUDA_VISIBLE_DEVICES=4,5,6,7 swift rollout --model Qwen/Qwen3-8B --vllm_data_parallel_size 4 --vllm_max_model_len 4096
# Parallelism: TP 4. Hardware: 8 GPUs of 80 GB, of which 4 train (53 GB each before activations) and 4 write.
#   bash scripts/megatron_gkd_server.sh
# DRY_RUN=1 prints the command; flags behind it win.
# The same as a file: examples/megatron_gkd/on_policy_server.yaml
set -euo pipefail

MODEL=${MODEL:-Qwen/Qwen3-8B}
TEACHER_MODEL=${TEACHER_MODEL:-Qwen/Qwen3-32B}
DATASET=(${DATASET:-AI-ModelScope/alpaca-gpt4-data-en#2000 AI-ModelScope/alpaca-gpt4-data-zh#2000})
OUTPUT_DIR=${OUTPUT_DIR:-output/megatron_gkd/on_policy_server}
ENVIRONMENT=(NPROC_PER_NODE=${NPROC_PER_NODE:-4} CUDA_VISIBLE_DEVICES=${CUDA_VISIBLE_DEVICES:-0,1,2,3})

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
SAMPLING=(
    --use_vllm true --vllm_mode server --vllm_server_host 127.0.0.1 --vllm_server_port 8000
    --vllm_server_timeout 600 --max_completion_length 2048
)
TRAINING=(
    --lr 1e-05 --lr_warmup_fraction 0.05 --num_train_epochs 1 --save_steps 100 --no_save_optim true
    --no_save_rng true --logging_steps 5 --output_dir "$OUTPUT_DIR"
)

if [[ ${TINY:-0} == 1 ]]; then
    echo "scripts/megatron_gkd_server.sh: the weights go to the server by NCCL, so this one needs GPUs" >&2
    exit 1
fi

COMMAND=(
    env "${ENVIRONMENT[@]}" megatron rlhf --rlhf_type gkd --external_plugins swift_kd_plugin
    "${MODELS[@]}" "${DATA[@]}" "${PARALLEL[@]}" "${LOSS[@]}" "${SAMPLING[@]}" "${TRAINING[@]}" "$@"
)
if [[ ${DRY_RUN:-0} == 1 ]]; then
    printf "%q " "${COMMAND[@]}"
    echo
else
    exec "${COMMAND[@]}"
fi
