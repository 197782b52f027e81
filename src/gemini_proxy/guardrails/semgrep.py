"""Find dangerous code for ``semgrep``, with the program of that name and rules of our own. It asks no network."""

import asyncio
import json
import os
import shutil
import sys
from collections.abc import Iterator
from functools import partial
from importlib.resources import files
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

from gemini_proxy.errors import EngineUnavailable
from gemini_proxy.guardrails.programs import IsolatedProgram, TooMuch
from gemini_proxy.policy import Answer, LabelledSpan, Question

NAME: Final = "semgrep"
MAX_CODE: Final = 100_000
"""Characters of one piece of code."""
MAX_PRINTED: Final = 8_388_608
"""Bytes of JSON that are read from one run."""
_MEMORY: Final = 4 << 30
"""Bytes of address space; the program reserves far more than it uses."""
_FILES: Final = {"python": "code.py", "py": "code.py", "bash": "code.sh", "sh": "code.sh"}
_OPTIONS: Final = (
    *("scan", "--metrics=off", "--disable-version-check", "--oss-only", "--no-git-ignore", "--quiet", "--json"),
    # Neither a comment in the code nor its length may switch a rule off.
    *("--disable-nosem", "--max-target-bytes=0", "--jobs=1"),
)


def program_path() -> str | None:
    """Return the program's path: beside this Python, where the extra puts it, or on PATH. None if it is missing."""
    return shutil.which(NAME, path=_path())


class SemgrepAnswerer:
    """Answer which rules a text breaks as code of the language that the question names, and where."""

    def payer(self, key: str | None) -> str:
        """Return "": nobody pays for what this machine reads."""
        return ""

    async def answer(self, question: Question, key: str | None) -> Answer:
        """Answer ``semgrep``. Raises EngineUnavailable for a long text, another language, or a program that fails."""
        language = json.loads(question.options).get("lang")
        if language not in _FILES:
            raise EngineUnavailable(f'semgrep(...) reads lang="python" and lang="bash", not {language}')
        if len(question.text) > MAX_CODE:
            raise EngineUnavailable(f"semgrep(...) reads code of up to {MAX_CODE} characters")
        program = program_path()
        if program is None:
            raise EngineUnavailable(f"semgrep(...) needs the program {NAME}, which is not installed")
        # The number of characters stays the same.
        code = question.text.encode("utf-8", "replace")
        try:
            folder = await asyncio.to_thread(partial(TemporaryDirectory, prefix="code-"))
            try:
                printed, status = await _scan(program, Path(folder.name), _FILES[language], code)
            finally:
                await asyncio.to_thread(folder.cleanup)
        except OSError as error:
            raise EngineUnavailable(f"semgrep(...) could not run {NAME} ({type(error).__name__})") from None
        except TooMuch:
            raise EngineUnavailable("semgrep(...) found too much in a text") from None
        return _read(printed, status, code)


async def _scan(program: str, folder: Path, name: str, code: bytes) -> tuple[bytes, int]:
    """Run the program. Raises OSError and TooMuch."""
    rules = files("gemini_proxy").joinpath("guardrails", "semgrep.yml")
    await asyncio.to_thread(partial(_write, folder, {name: code, "rules.yml": rules.read_bytes()}))
    # Its own files are removed with the folder.
    environment = {"PATH": _path(), "HOME": str(folder), "TMPDIR": str(folder), "SEMGREP_SEND_METRICS": "off"}
    command = (program, *_OPTIONS, "--config=rules.yml", name)
    return await IsolatedProgram(command, environment, _MEMORY, MAX_PRINTED).run(b"", str(folder))


def _write(folder: Path, contents: dict[str, bytes]) -> None:
    for name, content in contents.items():
        (folder / name).write_bytes(content)


def _read(printed: bytes, status: int, code: bytes) -> tuple[LabelledSpan, ...]:
    """Return what was found, in characters. Raises EngineUnavailable if not everything was looked at."""
    try:
        said = json.loads(printed)
        if status != 0 or not said["paths"]["scanned"] or any(error["level"] == "error" for error in said["errors"]):
            raise EngineUnavailable("semgrep(...) could not scan a text")
        return tuple(sorted(_found(said["results"], code), key=lambda found: (found.start, found.end)))
    except (ValueError, KeyError, TypeError):
        raise EngineUnavailable(f"semgrep(...) got no answer from {NAME}") from None


def _found(results: list[Any], code: bytes) -> Iterator[LabelledSpan]:
    for result in results:
        start, end = (len(code[: result[edge]["offset"]].decode("utf-8", "ignore")) for edge in ("start", "end"))
        # The program prefixes the names of rules with their folder.
        yield LabelledSpan(start, end, result["check_id"].rpartition(".")[2])


def _path() -> str:
    return os.pathsep.join((str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)))
