"""The commands of the pages that are run, and how they run on tiny models and few processes."""

from tests.docs.pages import PAGES

# In front of a block: it is run as it stands; the server is started for its user.
RUN, RUN_SERVER, RUN_ITS_USER, RUN_AND_LEARNS = "run", "run: server", "run: its user", "run: learns"
MARKED = [
    (page.name, block.mark, block.text)
    for page in PAGES
    for block in page.english.blocks
    if block.language == "bash" and block.mark
]
RUNNABLE = [(page, command) for page, mark, command in MARKED if mark == RUN]
TOGETHER = tuple(command for kind in (RUN_SERVER, RUN_ITS_USER) for _, mark, command in MARKED if mark == kind)
# tests/runs/test_internalize_experience_recipes.py runs it, and shows that the student learns.
(LEARNS,) = (command for _, mark, command in MARKED if mark == RUN_AND_LEARNS)
ON_CPU = " --template qwen3 --vllm_enforce_eager true --vllm_gpu_memory_utilization 0.1"


def make_smaller(command: str) -> list[str]:
    smaller = command.replace("NPROC_PER_NODE=8", "NPROC_PER_NODE=2")
    # The small model has 512 positions.
    smaller = smaller.replace("--max_length 2048", "--max_length 256").replace("_model_len 2049", "_model_len 257")
    if "--use_vllm true" in command:  # each rank starts two engines
        smaller = smaller.replace("NPROC_PER_NODE=2", "NPROC_PER_NODE=1").replace(
            "_parallel_size 2", "_parallel_size 1"
        )
    smaller = smaller.replace("--train_iters 60", "--train_iters 12").replace("checkpoint-60", "checkpoint-12")
    fewer = "off_policy.train_iters=2 on_policy.train_iters=2 save_steps=2 eval_steps=2 generate.limit=64"
    smaller = smaller.replace("strong_to_weak/run.yaml", f"strong_to_weak/run.yaml {fewer}")
    # Rows that the small model answers, so that some are accepted.
    smaller = smaller.replace(
        "--dataset pairs.jsonl --template qwen3 --thinking both",
        "--dataset examples/data/exp.jsonl --limit 16 --template qwen3 --thinking both",
    )
    for flag in ("model", "teacher_model"):
        tiny = f"--{flag} ./examples/base_model --{flag}_type qwen3"
        smaller = smaller.replace(f"--{flag} Qwen/Qwen3-8B", tiny)
    models = "student=output/pairs/checkpoint-80 teacher=Qwen/Qwen3-8B"
    tiny = "student=./examples/base_model teacher=./examples/base_model --model_type qwen3"
    smaller = smaller.replace(models, tiny)
    return ["bash", "-euc", smaller]
