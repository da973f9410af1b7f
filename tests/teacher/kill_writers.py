"""Two writers fill a teacher cache, are killed with SIGKILL at random moments and started again, until it is full.

python -m tests.teacher.kill_writers FOLDER KILLS

Prints the number of shards at each kill, as JSON.
"""

import json
import os
import random
import signal
import sys
import time
from functools import partial
from pathlib import Path

from swift_kd_plugin.teacher import teacher_cache
from swift_kd_plugin.teacher.teacher_cache import TeacherCache, shard_files
from tests.forked_runs import kill, start
from tests.teacher.test_teacher_cache import IDENTITY, hidden_values, key

SAMPLES, SHARD = 500, 10


def fill(folder: Path, rank: int, seed: int) -> None:
    """Writes what is not there, in an order of its own."""
    cache = TeacherCache(folder, IDENTITY, {}, rank)
    for number in random.Random(seed).sample(range(SAMPLES), SAMPLES):
        if key(number) not in cache:
            time.sleep(0.0005)  # of the teacher
            cache.add(key(number), hidden_values(number))
    cache.flush()


def main() -> None:
    folder, kills, draw = Path(sys.argv[1]), int(sys.argv[2]), random.Random(3)
    teacher_cache.SHARD_BYTES = SHARD * len(hidden_values(0)["rows"]) * 128
    shards: list[int] = []
    while len(shards) < kills:
        writers = [start(partial(fill, folder, rank, 2 * len(shards) + rank)) for rank in range(2)]
        for writer in writers:
            if kill(writer, draw.uniform(0, 0.12)) == signal.SIGKILL:
                shards.append(len(shard_files(folder / IDENTITY.folder)))
    _, status = os.waitpid(start(partial(fill, folder, 0, 0)), 0)
    assert status == 0, status
    print(json.dumps(shards))


if __name__ == "__main__":
    main()
