"""The modules of the quickstart and of the proof, importable by name as they import one another."""

import sys
from pathlib import Path

REPO = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(REPO / folder) for folder in ("examples/quickstart", "examples/proof", "scripts/dev")]
