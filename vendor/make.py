"""Makes the third-party scripts of the pages from npm's packages: ``make vendor``.

Versions and digests are those of ``package-lock.json``, so that each run writes the same bytes. The packages stay in a
temporary folder, and no script of theirs is run but esbuild, which joins and shortens them.
"""

import json
import re
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Final

_HERE: Final = Path(__file__).parent
_VENDOR: Final = _HERE.parent / "src/gemini_proxy/explorer/pages/static/vendor"
_OPTIONS: Final = (
    "--bundle",
    "--minify",
    "--format=iife",
    "--target=es2022",
    "--charset=utf8",
    "--legal-comments=none",
)
_PACKAGE: Final = re.compile("node_modules/((?:@[^/]+/)?[^/]+)/")


def _joined(folder: Path, entry: str, name: str) -> tuple[str, list[str]]:
    """Return what an entry file and all that it imports are as one script, and the packages it came from."""
    command = ["npx", "--no-install", "esbuild", entry, *_OPTIONS, f"--global-name={name}"]
    subprocess.run([*command, "--outfile=made.js", "--metafile=meta.json"], cwd=folder, check=True)
    inputs = json.loads((folder / "meta.json").read_text())["inputs"]
    packages = {match[1] for path in inputs if (match := _PACKAGE.match(path))}
    return (folder / "made.js").read_text(), sorted(packages)


def _licence(folder: Path, packages: list[str]) -> str:
    """Return the packages with their versions below the licences that they are under, each licence once."""
    under: dict[str, list[str]] = {}
    for package in packages:
        path = folder / "node_modules" / package
        version = json.loads((path / "package.json").read_text())["version"]
        under.setdefault((path / "LICENSE").read_text().strip(), []).append(f"{package} {version}")
    return "\n\n\n".join("\n".join(names) + f"\n\n{text}" for text, names in under.items()) + "\n"


def main() -> None:
    """Write ``codemirror.js`` and ``codemirror.LICENSE`` for the pages."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for file in ("package.json", "package-lock.json", "codemirror.js"):
            shutil.copy(_HERE / file, folder)
        subprocess.run(["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund"], cwd=folder, check=True)
        script, packages = _joined(folder, "codemirror.js", "CodeMirror")
        head = "/* CodeMirror 6, made by vendor/make.py. Versions and licences: codemirror.LICENSE */\n"
        (_VENDOR / "codemirror.js").write_text(head + script)
        (_VENDOR / "codemirror.LICENSE").write_text(_licence(folder, packages))


if __name__ == "__main__":
    main()
