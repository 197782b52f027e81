"""gemini-cli without a terminal, in a folder and a home of its own; a chat goes on with ``--resume``.

It has tools of its own: listing a folder stands for the weather, writing a file for deleting one.
"""

import json
import os
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from tests.clients.matrix.drivers.driver import KEY, MODEL, Ask, Say, ran, serve

_FOLDER = Path(os.environ["CLIENT_FOLDER"])
_SETTINGS = {
    "security": {"auth": {"selectedType": "gemini-api-key"}, "folderTrust": {"enabled": False}},
    "privacy": {"usageStatisticsEnabled": False},
    "general": {"disableAutoUpdate": True, "enableAutoUpdate": False},
}
_TIMEOUT = 90.0


def ask_in_a_folder(base_url: str, *flags: str, resumes: bool = False) -> Ask:
    home = Path(tempfile.mkdtemp(prefix="gemini-cli-"))
    work = home / "work"
    (home / ".gemini").mkdir()
    work.mkdir()
    (home / ".gemini" / "settings.json").write_text(json.dumps(_SETTINGS))
    asked = 0

    def ask(prompt: str, say: Say) -> None:
        nonlocal asked
        resumed = ("--resume", "latest") if resumes and asked else ()
        asked += 1
        done = subprocess.run(
            [_FOLDER / "node_modules/.bin/gemini", "-m", MODEL, "-o", "json", *flags, *resumed, "-p", prompt],
            cwd=work,
            env={
                "PATH": os.environ["PATH"],
                "HOME": str(home),
                "GEMINI_API_KEY": KEY,
                "GOOGLE_GEMINI_BASE_URL": base_url,
                "GEMINI_CLI_TRUST_WORKSPACE": "true",
                "NO_COLOR": "1",
            },
            capture_output=True,
            text=True,
            timeout=_TIMEOUT,
            stdin=subprocess.DEVNULL,
        )
        found = _result(done.stdout) or _result(done.stderr)
        say(found.get("response") or "")
        if (work / "forbidden.txt").exists():
            ran.append("delete_file")
        if _calls(found).get("list_directory", {}).get("success"):
            ran.append("weather")
        if done.returncode or found.get("error"):
            raise RuntimeError(f"exit {done.returncode}: {found.get('error') or done.stderr[-2000:]}")

    return ask


def _result(output: str) -> dict[str, Any]:
    """The JSON object that it ends with; empty where there is none."""
    start = output.find("{\n")
    try:
        found = json.loads(output[start:]) if start >= 0 else {}
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _calls(found: dict[str, Any]) -> dict[str, Any]:
    by_name: dict[str, Any] = found.get("stats", {}).get("tools", {}).get("byName", {})
    return by_name


if __name__ == "__main__":
    serve(
        {
            "stream": ask_in_a_folder,
            "tool_stream": lambda base_url: ask_in_a_folder(base_url, "--yolo"),
            "chat": lambda base_url: ask_in_a_folder(base_url, resumes=True),
        }
    )
