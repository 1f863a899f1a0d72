"""A short run of ``make chaos``: faults while scans stream, and no scan is lost."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

CHAOS = Path(__file__).parents[1] / "chaos"
SMALL = "--scans 24 --distinct 12 --faults 8 --quick --replicas 1 --clients 2 --pause 0.7 --flood 0 --timeout 150"


@pytest.mark.rabbitmq
def test_no_scan_is_lost_or_answered_twice(rabbitmq_url, rabbitmqctl):
    done = subprocess.run(
        [sys.executable, CHAOS, *SMALL.split(), "--seed", "1"],
        env={**os.environ, "COLUMNS": "160"},
        capture_output=True,
        text=True,
        timeout=220,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "nothing lost, nothing double" in done.stdout
    (answered,) = re.findall(r"answered as in the quiet run +│ (\d+) ", done.stdout)
    assert int(answered) >= 20
