#!/usr/bin/env bash
# torch 2.13.0, torch.distributed.checkpoint: a save that cannot be written raises CheckpointException, which derives
# from BaseException. A handler `except Exception` around the save never sees a full disk or a path that is none; the
# cause stands in `failures`, not in __cause__ or __context__ of its own making.
# Seen 2026-11-29: "not caught by except Exception: CheckpointException, failures of ranks [0]".
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet "torch==2.13.0+cpu" numpy
cat > "$folder/save.py" <<'PY'
import sys
import warnings
from pathlib import Path

import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.api import CheckpointException

warnings.simplefilter("ignore")
blocked = Path(sys.argv[1]) / "file"
blocked.write_text("no folder")
state = {"weight": torch.zeros(4)}
dcp.save(state, checkpoint_id=Path(sys.argv[1]) / "good", no_dist=True)
try:
    try:
        dcp.save(state, checkpoint_id=blocked / "checkpoint", no_dist=True)
    except Exception as error:
        print("caught by except Exception:", type(error).__name__)
        sys.exit(1)
except CheckpointException as error:
    print(f"not caught by except Exception: {type(error).__name__}, failures of ranks {list(error.failures)}")
    sys.exit(0 if not isinstance(error, Exception) and error.failures else 1)
print("nothing was raised")
sys.exit(1)
PY
"$folder/venv/bin/python" "$folder/save.py" "$folder"
