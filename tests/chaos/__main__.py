"""Run the suite: ``python tests/rabbitmq.py python tests/chaos --help``."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # for the modules in tests/

from run import main

if __name__ == "__main__":
    sys.exit(main())
