"""``python -m gliaflow_cli``."""

from gliaflow_cli.main import main

main()
