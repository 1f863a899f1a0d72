"""Draw the page of an evaluation again: ``python -m gliaflow_evaluation.report FOLDER``."""

import sys
from pathlib import Path

from gliaflow_evaluation.report.page import render

print(render(Path(sys.argv[1])))
