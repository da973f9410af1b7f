"""Tokens per second of `swift-kd generate` against plain vLLM on the same prompts.

python -m scripts.dev.bench_generate [--prompts N] [--repeats N] [--model FOLDER] [--check]

Both engines have the same weights and settings and live in this process. `ours` is everything between rows and stored
samples: templating, generation, decoding, checks, shards. `vllm` is LLM.generate on the token ids of the same prompts
with the same sampling parameters. They take turns, and who is first changes. Compared is the median of the shares of
neighbours. Seconds are those of the clock, or without a GPU those that the thread computed which runs the engine, so
that what else the machine does is not counted.
"""

import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Annotated, Any

import typer

LEAST_SHARE = 0.95
ROOT = Path(__file__).resolve().parents[2]
# What vLLM has to be told where there is no GPU; before torch is imported.
ON_CPU = {"VLLM_PLUGINS": "none", "VLLM_CPU_KVCACHE_SPACE": "1", "TORCHDYNAMO_DISABLE": "1"}
LENGTH = 512
HAS_GPU = os.path.exists("/dev/nvidiactl")


def now() -> float:
    """Seconds that count: see above."""
    return time.perf_counter() if HAS_GPU else time.thread_time()


def make_model(folder: Path) -> Path:
    """A small Qwen3 with the example's tokenizer and random weights: its responses are as long as they may be."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    config = AutoConfig.from_pretrained(ROOT / "examples" / "base_model", hidden_size=256, intermediate_size=512)
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    AutoTokenizer.from_pretrained(ROOT / "examples" / "base_model").save_pretrained(folder)
    return folder


def make_rows(count: int) -> list[dict[str, Any]]:
    words = ["say", "sum", "BE", "LEEN", "TT", "ILFF"]
    texts = [" ".join(words[(number + step) % 6] for step in range(3 + number % 20)) for number in range(count)]
    return [
        {"messages": [{"role": "user", "content": f"{text} {number}"}], "kd_source": "bench", "kd_row": number + 1}
        for number, text in enumerate(texts)
    ]


class Bench:
    """Two engines and the same work for both."""

    def __init__(self, model: Path, folder: Path, prompts: int, tokens: int, sequences: int):
        import torch
        from datasets import Dataset
        from vllm import LLM

        from swift_kd_plugin.data.columns import FEATURES
        from swift_kd_plugin.generation.codec import load_template
        from swift_kd_plugin.generation.engines import Sampling
        from swift_kd_plugin.generation.filters import Filters
        from swift_kd_plugin.generation.generation_run import GenerationPlan
        from swift_kd_plugin.generation.judging import Judge
        from swift_kd_plugin.generation.vllm_engine import VllmEngine

        self.folder = folder
        template = load_template(model, "qwen3", "qwen3", torch.bfloat16)
        settings = {"max_num_seqs": sequences, "enforce_eager": True}
        memory = 0.1 if not torch.cuda.is_available() else 0.3
        common = {"gpu_memory_utilization": memory, "max_model_len": LENGTH}
        self.ours = VllmEngine(model, template, **common, **settings)
        chunked = {} if torch.cuda.is_available() else {"enable_chunked_prefill": False}
        self.plain = LLM(str(model), dtype="bfloat16", disable_log_stats=True, **common, **settings, **chunked)
        rows = [{**dict.fromkeys(FEATURES), **row} for row in make_rows(prompts)]
        dataset = Dataset.from_list(rows, features=FEATURES)
        sampling = Sampling(temperature=1.0, max_new_tokens=tokens)
        self.plan = GenerationPlan(dataset, sampling, Judge(Filters(finish="any", max_repetition=0.99)))
        self.inputs = self._plain_inputs()
        self.count = 0

    def _plain_inputs(self) -> list[tuple[dict, Any]]:
        stops, found = self.ours.codec.stops(self.plan.sampling), []
        for task in self.plan.tasks_in(range(self.plan.tasks)):
            prompt = task.prompt(self.plan.seed)
            ids = self.ours.codec.encode(prompt)["input_ids"]
            found.append(
                ({"prompt_token_ids": ids}, self.ours._parameters(prompt, len(ids), self.plan.sampling, stops))
            )
            found[-1][1].detokenize = True  # as plain vLLM does
        return found

    def run_ours(self) -> tuple[int, float]:
        """Tokens and seconds."""
        from swift_kd_plugin.generation.generation_run import ShardRunner
        from swift_kd_plugin.generation.shard_store import Store

        self.count += 1
        with Store(self.folder / str(self.count), {}, self.plan.tasks, 256) as store:
            runner = ShardRunner(self.plan, store)
            start = now()
            runner.run(self.ours)
            return runner.tokens, now() - start

    def run_vllm(self) -> tuple[int, float]:
        """Tokens and seconds."""
        prompts, parameters = zip(*self.inputs, strict=True)
        start = now()
        outputs = self.plain.generate(list(prompts), list(parameters), use_tqdm=False)
        seconds = now() - start
        return sum(len(output.outputs[0].token_ids) for output in outputs), seconds

    def clear(self) -> None:
        """Forgets the prompts' keys and values, which a second run would find again."""
        self.ours.engine.engine.reset_prefix_cache()
        self.plain.reset_prefix_cache()


def measure(bench: Bench, repeats: int) -> dict[str, Any]:
    """Tokens per second of both ways, turn by turn after a warm-up."""
    ways = {"ours": bench.run_ours, "vllm": bench.run_vllm}
    speeds: dict[str, list[float]] = {name: [] for name in ways}
    counts = {}
    for repeat in range(repeats + 1):
        for name in list(ways)[:: 1 if repeat % 2 else -1]:
            bench.clear()
            counts[name], seconds = ways[name]()
            if repeat:
                speeds[name].append(counts[name] / seconds)
    medians = {name: statistics.median(found) for name, found in speeds.items()}
    share = statistics.median(a / b for a, b in zip(speeds["ours"], speeds["vllm"], strict=True))
    same = counts["ours"] == counts["vllm"]
    line = {"tokens": counts["ours"], "same_tokens": same, **medians, "share": share}
    return {**line, "speeds": speeds, "holds": same and share >= LEAST_SHARE}


def main(
    prompts: Annotated[int, typer.Option(help="How many prompts.")] = 256,
    repeats: Annotated[int, typer.Option(help="Of each way.")] = 8,
    tokens: Annotated[list[int], typer.Option(help="Most tokens of a response, one run each.")] = (32, 128),
    sequences: Annotated[int, typer.Option(help="Responses at a time.")] = 64,
    model: Annotated[Path | None, typer.Option(help="A model of Qwen3's kind; a small random one by default.")] = None,
    check: Annotated[bool, typer.Option("--check", help="End with exit code 1 if the target is missed.")] = False,
    output: Annotated[Path, typer.Option(help="The figures as JSON.")] = Path("output/bench_generate.json"),
) -> None:
    """Tokens per second against plain vLLM, for short and long responses."""
    if not HAS_GPU:
        for name, value in {**ON_CPU, "VLLM_ENABLE_V1_MULTIPROCESSING": "0"}.items():
            os.environ.setdefault(name, value)
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    from scripts.dev.bench_tools import describe_machine, table, write_json

    result: dict[str, Any] = {"machine": describe_machine(), "runs": []}
    with tempfile.TemporaryDirectory() as work:
        folder = Path(work)
        model = model or make_model(folder / "model")
        for most in tokens:
            bench = Bench(model, folder / str(most), prompts, most, sequences)
            result["runs"].append({"max_new_tokens": most, "prompts": prompts, **measure(bench, repeats)})
            bench.ours.close()
            bench.plain.llm_engine.engine_core.shutdown()
    heads = {"prompts": "prompts:,", "max_new_tokens": "new tokens:,", "tokens": "tokens:,"}
    heads |= {
        "same_tokens": "as many",
        "ours": "ours tokens/s:,.0f",
        "vllm": "vLLM tokens/s:,.0f",
        "share": "share:.3f",
    }
    print(table(result["runs"], {**heads, "holds": f"at least {LEAST_SHARE}"}))
    write_json(output, result)
    missed = not all(run["holds"] for run in result["runs"])
    print("a target is missed" if missed else "all targets hold")
    if missed and check:
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)
