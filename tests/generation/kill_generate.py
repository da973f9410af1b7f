"""Starts generate again and again and kills it with SIGKILL at random moments, until it has finished.

python -m tests.generation.kill_generate FOLDER ENGINE KILLS SHARE

A kill comes at most SHARE of the time of an undisturbed run after the start; with vLLM, which takes longer to start,
after its next shard. Everything is imported once, by a small run: each start is a fork of this process. Prints one JSON
line: for each folder that was filled, the kills and whether its rows are those of FOLDER/whole, the undisturbed run.
"""

import json
import os
import random
import signal
import sys
import time
from functools import partial
from pathlib import Path

from swift_kd_plugin.cli.main import app
from tests.forked_runs import import_for, kill, start
from tests.generation.generate_command import FLAGS
from tests.launching.commands import flags_to_argv

QUESTIONS = 60


def generate(folder: Path, engine: str, limit: int) -> None:
    changes = {"engine": engine, "limit": limit, "thinking": "both", "n": 3, "shard_size": 6, "verifier": "exact"}
    flags = {**FLAGS, **changes, "select": "majority", "max_num_seqs": 16, "output": folder}
    app(["generate", *flags_to_argv(flags), "--dedup"], standalone_mode=False)


def shards_in(folder: Path) -> int:
    return len(list(folder.glob("shards/*.jsonl")))


def main() -> None:
    folder, engine, kills, share = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), float(sys.argv[4])
    import_for(partial(generate, folder / "warm", "transformers", 1))
    if engine == "vllm":
        import swift.infer_engine.vllm_engine  # noqa: F401
    draw = random.Random(7)
    began = time.monotonic()
    _, status = os.waitpid(start(partial(generate, folder / "whole", engine, QUESTIONS)), 0)
    longest = share * (time.monotonic() - began)
    assert status == 0, status
    truth = (folder / "whole" / "responses.jsonl").read_bytes()
    found, moments = [], []
    while not found or len(moments) < kills:
        out, since = folder / f"killed{len(found)}", len(moments)
        while True:
            process = start(partial(generate, out, engine, QUESTIONS))
            if len(moments) < kills:
                status = kill(process, draw.uniform(0, longest), partial(shards_in, out) if engine == "vllm" else None)
            else:
                _, status = os.waitpid(process, 0)
            if status != signal.SIGKILL:
                break
            moments.append(shards_in(out))
        assert status == 0, status
        same = (out / "responses.jsonl").read_bytes() == truth
        found.append({"kills": len(moments) - since, "same": same})
    print(json.dumps({"folders": found, "shards_at_kills": moments, "rows": truth.count(b"\n")}))


if __name__ == "__main__":
    main()
