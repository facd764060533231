"""Build the app's pages into the package, and record what they were built from.

python app/build.py            types from the server's schema, then npm install and the bundle (needs Node 20 or newer)
python app/build.py --check    exit 1 where the committed bundle was not built from these sources (needs no Node)
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
STATIC = HERE.parent / "src" / "expunge" / "app" / "static"
STAMP = STATIC / "sources.sha256"
SOURCES = ("index.html", "package-lock.json", "tsconfig.json", "vite.config.ts", "src/**/*")


def fingerprint() -> str:
    """SHA-256 over names and contents of everything that the bundle is made from."""
    files = sorted({f for pattern in SOURCES for f in HERE.glob(pattern) if f.is_file()})
    hasher = hashlib.sha256()
    for file in files:
        hasher.update(file.relative_to(HERE).as_posix().encode() + b"\0" + file.read_bytes() + b"\0")
    return hasher.hexdigest()


def current() -> bool:
    """Whether the committed bundle was built from the sources as they are."""
    return STAMP.exists() and STAMP.read_text().strip() == fingerprint()


def main() -> None:
    """Build, or check."""
    if "--check" in sys.argv:
        sys.exit(0 if current() else "the bundle under src/expunge/app/static is stale; run make app")
    from expunge.app.typescript import types

    (HERE / "src" / "api-types.ts").write_text(types())
    # Not npm ci: it refuses a lock file without the optional packages of other platforms.
    for command in (["npm", "install", "--no-save"], ["npm", "run", "build"]):
        subprocess.run(command, cwd=HERE, check=True)
    STAMP.write_text(fingerprint() + "\n")


if __name__ == "__main__":
    main()
