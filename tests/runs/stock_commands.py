"""Opens checkpoints with ms-swift's own commands, in one process: python -m tests.runs.stock_commands FILE [without]

FILE is JSON: a list of [command, arguments]. `without` makes the plugin one that is not installed.
"""

import json
import sys
from pathlib import Path

if sys.argv[2:] == ["without"]:
    sys.modules["swift_kd_plugin"] = None

from swift.pipelines import export_main, infer_main

COMMANDS = {"infer": infer_main, "export": export_main}

if __name__ == "__main__":
    for command, arguments in json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")):
        COMMANDS[command](arguments)
