"""Install the browser parts: `python -m pages.ui.browser`."""

import sys

from ._npm import PACKAGES, InstallError


def main() -> int:
    """Install, say what happened, and return the exit code: 0 done, 1 failed with the reason on stderr."""
    try:
        PACKAGES.install(report=lambda line: print(line, file=sys.stderr))
    except InstallError as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("Interrupted: the browser parts are not installed. Run the command again.", file=sys.stderr)
        return 1
    print("installed: " + ", ".join(f"{name} {version}" for name, version in PACKAGES.versions.items()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
