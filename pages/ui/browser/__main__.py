"""Install the browser parts: `python -m pages.ui.browser`; `demo STUDENT.zip FOLDER` makes a demo of a download."""

import argparse
import sys
from pathlib import Path
from typing import TextIO

from pages.ui.browser._demo import unpack_demo
from pages.ui.browser._npm import PACKAGES, InstallError


def write(line: str, stream: TextIO) -> None:
    """Write a line at once, so that progress shows while npm works."""
    stream.write(line + "\n")
    stream.flush()


def main() -> int:
    """Run the command, and return the exit code: 0 done, 1 failed with the reason on stderr."""
    parser = argparse.ArgumentParser(prog="python -m pages.ui.browser", description=__doc__)
    parser.add_argument("--tests", action="store_true", help="also install the packages for tests")
    demo = parser.add_subparsers(dest="verb").add_parser("demo", help="make a browser demo from a downloaded bundle")
    demo.add_argument("download", type=Path, help="the .zip bundle of an export")
    demo.add_argument("folder", type=Path, help="output folder, for any static host")
    options = parser.parse_args()
    try:
        PACKAGES.install(report=lambda line: write(line, sys.stderr), tests=options.tests)
        if options.verb == "demo":
            write(f"made {unpack_demo(options.download, options.folder)}", sys.stdout)
            return 0
    except InstallError as error:
        write(str(error), sys.stderr)
        return 1
    except KeyboardInterrupt:
        write("Interrupted: the browser parts are not installed. Run the command again.", sys.stderr)
        return 1
    write("installed: " + ", ".join(f"{name} {version}" for name, version in PACKAGES.versions.items()), sys.stdout)
    return 0


if __name__ == "__main__":
    sys.exit(main())
