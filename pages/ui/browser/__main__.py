"""Install the browser parts: `python -m pages.ui.browser`."""

import sys
from typing import TextIO

from ._npm import PACKAGES, InstallError


def say(line: str, stream: TextIO) -> None:
    """Write a line at once, so that progress shows while npm works."""
    stream.write(line + "\n")
    stream.flush()


def main() -> int:
    """Install, say what happened, and return the exit code: 0 done, 1 failed with the reason on stderr."""
    try:
        PACKAGES.install(report=lambda line: say(line, sys.stderr))
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
