"""Runs commands of ours one after the other in one process: `python -m several_runs COMMANDS.json`.

As the processes of a run start it anew, they all run the same commands, and start but once.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from cnnbert.cli import main

if __name__ == "__main__":
    for command in json.loads(Path(sys.argv[1]).read_text()):
        if main(command) != 0:
            sys.exit(1)
