"""Starts eval again and again and kills it with SIGKILL at random moments, until it has finished.

python -m tests.evaluation.killing FOLDER KILLS SHARE

A kill comes within SHARE of the time that a whole run takes. All is imported once, by a small run: each start is a fork
of this process. Prints one JSON line: the answers that were stored at each kill, and whether the files are those of
FOLDER/whole, which nothing disturbed.
"""

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

from swift_kd_plugin.cli.main import app
from tests.evaluation.running import FLAGS, read_report, without_times
from tests.launch import flags_to_argv


def evaluate(folder: Path, limit: int = 40) -> None:
    changes = {"limit": limit, "shard_size": 8, "max_num_seqs": 8, "metric": ["exact", "rouge", "ppl"]}
    app(["eval", *flags_to_argv({**FLAGS, **changes, "output": folder})], standalone_mode=False)


def start(folder: Path) -> int:
    """The process id of a run that has just been started."""
    process = os.fork()
    if process:
        return process
    try:
        evaluate(folder)
        os._exit(0)
    except BaseException as error:
        print(error, file=sys.stderr, flush=True)
        os._exit(1)


def files_of(folder: Path) -> list:
    """What a run wrote, without its times and the name of its folder."""
    names = [file.relative_to(folder) for file in folder.rglob("*") if file.name == "likelihoods.jsonl"]
    texts = [(folder / name).read_text() for name in [*sorted(names), Path("answers.jsonl"), Path("manifest.json")]]
    return [without_times(read_report(folder)), sorted(map(str, names)), texts]


def stored_in(folder: Path) -> int:
    return len(list(folder.glob("cells/*/shards/*.jsonl"))) + len(list(folder.glob("cells/*/likelihoods.jsonl")))


def main() -> None:
    folder, kills, longest = Path(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])
    evaluate(folder / "warm", 1)
    started = time.monotonic()
    assert os.waitpid(start(folder / "whole"), 0)[1] == 0
    longest *= time.monotonic() - started
    draw, moments = random.Random(7), []
    for _ in range(kills):
        process = start(folder / "killed")
        time.sleep(draw.uniform(0, longest))
        os.kill(process, signal.SIGKILL)
        if os.waitpid(process, 0)[1] != signal.SIGKILL:
            break
        moments.append(stored_in(folder / "killed"))
    assert os.waitpid(start(folder / "killed"), 0)[1] == 0
    print(json.dumps({"stored": moments, "same": files_of(folder / "killed") == files_of(folder / "whole")}))


if __name__ == "__main__":
    main()
