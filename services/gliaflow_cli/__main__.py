"""The ``gliaflow`` command, also ``python -m gliaflow_cli``: it handles signals before the imports that take long."""

import sys

from gliaflow_runtime.ending import INTERRUPTED, interrupt_on_signals


def main() -> None:
    """Run the command. Ctrl-C while Python imports it ends in one line."""
    interrupt_on_signals()
    try:
        from gliaflow_cli.main import main as run

        run()
    except KeyboardInterrupt:
        sys.stderr.write("gliaflow: interrupted\n")
        sys.exit(INTERRUPTED)


if __name__ == "__main__":
    main()
