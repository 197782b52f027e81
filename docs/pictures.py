"""Takes the pictures of the documentation from the running demo, so that they stay true: ``make pictures``."""

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from playwright.sync_api import sync_playwright

_FOLDER: Final = Path(__file__).parent / "pictures"
_REFUSED: Final = re.compile(r"http://\S+/explorer/traces/\S+")
_SIZE: Final = {"width": 1180, "height": 760}


@contextmanager
def _demo(folder: Path) -> Iterator[str]:
    """Run the demo. Yield the address of the page of its refused response."""
    command = [sys.executable, "-m", "gemini_proxy", "demo", "--port", "0", "--database", str(folder / "demo.db")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield next(match[0] for line in process.stdout if (match := _REFUSED.search(line)))
        finally:
            process.terminate()


def main() -> None:
    """Write the pictures into ``docs/pictures``."""
    browser = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
    if browser is None:
        sys.exit("No chromium is installed: apt install chromium fonts-dejavu-core, or name one in $CHROMIUM")
    with tempfile.TemporaryDirectory() as folder, _demo(Path(folder)) as refused, sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=browser, args=["--no-sandbox", "--disable-gpu"])
        page = chromium.new_page(viewport=_SIZE)
        page.goto(refused)
        page.screenshot(path=_FOLDER / "refused-trace.png")
        chromium.close()


if __name__ == "__main__":
    main()
