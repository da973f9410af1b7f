"""Writers that are killed, and a disk without room: nothing that was written is lost, nothing half is read."""

import json
import resource
import subprocess
import sys

import pytest
import torch

from swift_kd_plugin.errors import KDError
from swift_kd_plugin.teacher.cache_contents import find_damage
from swift_kd_plugin.teacher.teacher_cache import TeacherCache, shard_files
from tests.paths import ROOT
from tests.teacher.kill_writers import SAMPLES
from tests.teacher.test_teacher_cache import IDENTITY, hidden_values, key

KILLS = 20


def test_two_writers_are_killed_twenty_times(tmp_path):
    command = [sys.executable, "-m", "tests.teacher.kill_writers", str(tmp_path), str(KILLS)]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert run.returncode == 0, run.stderr
    shards = json.loads(run.stdout)
    assert len(shards) >= KILLS
    assert len(set(shards)) > KILLS // 4  # they were writing
    assert list(find_damage(tmp_path)) == [None] * len(shard_files(tmp_path / IDENTITY.folder))
    whole = TeacherCache(tmp_path, IDENTITY, {})
    assert len(whole) == SAMPLES
    for number in range(SAMPLES):
        assert torch.equal(whole.read(key(number))["rows"], hidden_values(number)["rows"])


def test_a_disk_without_room_is_one_sentence(tmp_path):
    cache = TeacherCache(tmp_path, IDENTITY, {})
    for number in range(20):
        cache.add(key(number), hidden_values(number))
        if number == 9:
            cache.flush()
    before = {file: file.read_bytes() for file in cache.folder.iterdir()}
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (5000, limits[1]))
    try:
        with pytest.raises(KDError, match=r"cannot be written: File too large; make room or choose another place\.$"):
            cache.flush()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert {file: file.read_bytes() for file in cache.folder.iterdir()} == before
    cache.flush()
    assert len(TeacherCache(tmp_path, IDENTITY, {})) == 20
