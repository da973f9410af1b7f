# With TINY=1 a script sources this to run on a laptop's CPU; examples/tiny.yaml is the same for recipes. Run from the
# root.
ENVIRONMENT+=(
    SWIFT_KD_DEVICE="${SWIFT_KD_DEVICE:-cpu}" OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
    NPROC_PER_NODE="${NPROC_PER_NODE:-${PROCESSES:-1}}"
)
TINY_FLAGS=(--model ./examples/base_model --model_type qwen3)
if [[ ${WITH_SERVER:-0} == 0 ]]; then
    TINY_FLAGS+=(--teacher_model ./examples/base_model --teacher_model_type qwen3)
fi
TINY_FLAGS+=(
    --dataset_num_proc 1 --max_length 128 --tensor_model_parallel_size 1 --micro_batch_size 4 --global_batch_size 8
    --logging_steps 1
)
if [[ ${DRY_RUN:-0} == 0 && ! -d output/tiny_models ]]; then
    python examples/tiny_models.py
fi
