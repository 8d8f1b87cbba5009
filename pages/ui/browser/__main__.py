"""Install the browser parts: `python -m pages.ui.browser`; `demo STUDENT.zip FOLDER` makes a demo of a download."""

import argparse
import sys
from pathlib import Path
from typing import TextIO

from pages.ui.browser._demo import unpack_demo
from pages.ui.browser._npm import PACKAGES, InstallError


def say(line: str, stream: TextIO) -> None:
    """Write a line at once, so that progress shows while npm works."""
    stream.write(line + "\n")
    stream.flush()


def main() -> int:
    """Do what was asked, say what happened, and return the exit code: 0 done, 1 failed with the reason on stderr."""
    parser = argparse.ArgumentParser(prog="python -m pages.ui.browser", description=__doc__)
    parser.add_argument("--tests", action="store_true", help="install what tests need, too")
    demo = parser.add_subparsers(dest="verb").add_parser("demo", help="make a browser demo of a downloaded zip")
    demo.add_argument("download", type=Path, help="the .zip that an export gives")
    demo.add_argument("folder", type=Path, help="a new folder, to be served by any static host")
    asked = parser.parse_args()
    try:
        PACKAGES.install(report=lambda line: say(line, sys.stderr), tests=asked.tests)
        if asked.verb == "demo":
            say(f"made {unpack_demo(asked.download, asked.folder)}", sys.stdout)
            return 0
    except InstallError as error:
        say(str(error), sys.stderr)
        return 1
    except KeyboardInterrupt:
        say("Interrupted: the browser parts are not installed. Run the command again.", sys.stderr)
        return 1
    say("installed: " + ", ".join(f"{name} {version}" for name, version in PACKAGES.versions.items()), sys.stdout)
    return 0


if __name__ == "__main__":
    sys.exit(main())
