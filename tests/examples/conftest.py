"""The quickstart's modules, importable by name as they import one another."""

import sys
from pathlib import Path

REPO = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(REPO / "examples" / "quickstart"), str(REPO / "scripts" / "dev")]
