"""Starts eval again and again and kills it with SIGKILL at random moments, until it has finished.

python -m tests.evaluation.kill_eval FOLDER KILLS

A kill comes soon after something new was stored. All is imported once, by a small run: each start is a fork of this
process. Prints one JSON line: the files that were stored at each kill, and whether the files of the last run are those
of FOLDER/whole, which nothing disturbed.
"""

import json
import os
import random
import signal
import sys
from functools import partial
from pathlib import Path

from swift_kd_plugin.cli.main import app
from tests.evaluation.eval_command import FLAGS, read_report, without_times
from tests.forked_runs import import_for, kill, start
from tests.launching.commands import flags_to_argv

LONGEST = 0.03


def evaluate(folder: Path, limit: int = 40) -> None:
    changes = {"limit": limit, "shard_size": 8, "max_num_seqs": 8, "metric": ["exact", "rouge", "ppl"]}
    app(["eval", *flags_to_argv({**FLAGS, **changes, "output": folder})], standalone_mode=False)


def files_of(folder: Path) -> list:
    """What a run wrote, without its times and the name of its folder."""
    names = [file.relative_to(folder) for file in folder.rglob("*") if file.name == "likelihoods.jsonl"]
    texts = [(folder / name).read_text() for name in [*sorted(names), Path("answers.jsonl"), Path("manifest.json")]]
    return [without_times(read_report(folder)), sorted(map(str, names)), texts]


def stored_in(folder: Path) -> int:
    return len(list(folder.glob("cells/*/shards/*.jsonl"))) + len(list(folder.glob("cells/*/likelihoods.jsonl")))


def main() -> None:
    folder, kills = Path(sys.argv[1]), int(sys.argv[2])
    import_for(partial(evaluate, folder / "warm", 1))
    assert os.waitpid(start(partial(evaluate, folder / "whole")), 0)[1] == 0
    killed = folder / "killed"
    draw, moments = random.Random(7), []
    for _ in range(kills):
        process = start(partial(evaluate, killed))
        if kill(process, draw.uniform(0, LONGEST), partial(stored_in, killed)) != signal.SIGKILL:
            break
        moments.append(stored_in(killed))
    assert os.waitpid(start(partial(evaluate, killed)), 0)[1] == 0
    print(json.dumps({"stored": moments, "same": files_of(killed) == files_of(folder / "whole")}))


if __name__ == "__main__":
    main()
