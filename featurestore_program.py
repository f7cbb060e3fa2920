"""The program ``featurestore``.

It stands beside the package, which takes a second to import: Ctrl-C within that second shall end
the program in one line as well, and not in a traceback.
"""

import os
import sys

INTERRUPTED = 130  # 128 and the number of SIGINT, as shells have it


def main() -> int:
    """Run the command line and return its exit status."""
    try:
        from featurestore.cli import main as run
    except KeyboardInterrupt:
        print("Interrupted.", file=sys.stderr, flush=True)
        os._exit(INTERRUPTED)  # what is half imported must not be waited for
    return run()
