#!/usr/bin/env bash
# datasets 4.8.4: Dataset.map with num_proc (1 is enough) puts a deep copy into the place of os.environ and leaves it
# there. Whoever holds the old object (a test fixture that undoes its changes, a library that took a reference) changes
# an object that os.environ no longer is: what it removes is still seen by everybody else, child processes included.
# Seen 2026-11-29: "without num_proc the same object: True; with num_proc=1: False; removed by the holder, still there: True".
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet "datasets==4.8.4"
cat > "$folder/map.py" <<'PY'
import os
import sys

from datasets import Dataset, disable_progress_bars


def same(row):
    return row


if __name__ == "__main__":
    disable_progress_bars()
    held = os.environ
    held["SET_BY_A_FIXTURE"] = "1"
    rows = Dataset.from_list([{"number": number} for number in range(4)])
    rows.map(same, load_from_cache_file=False)
    kept = os.environ is held
    rows.map(same, num_proc=1, load_from_cache_file=False)
    replaced = os.environ is not held
    del held["SET_BY_A_FIXTURE"]
    left = "SET_BY_A_FIXTURE" in os.environ
    print(f"without num_proc the same object: {kept}; with num_proc=1: {not replaced}; "
          f"removed by the holder, still there: {left}")
    sys.exit(0 if kept and replaced and left else 1)
PY
HF_HUB_OFFLINE=1 "$folder/venv/bin/python" "$folder/map.py"
