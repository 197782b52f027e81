"""``ocr``: the text in images, read by the program tesseract. What a stranger sent is read in a process of its own."""

import asyncio
import base64
import binascii
import contextlib
import os
import resource
import shutil
from typing import Final

from gemini_proxy.errors import EngineUnavailable
from gemini_proxy.policy import Answer, Question

PROGRAM: Final = "tesseract"
MAX_IMAGE: Final = 20_971_520
"""Bytes of an image, encoded: what Gemini takes inline."""
MAX_READ: Final = 1_048_576
"""Bytes of text that are taken from one image."""
_MEMORY: Final = 1 << 30
"""Bytes of address space of a process: an image of a few bytes may unfold into gigabytes."""


class Tesseract:
    """Reads images that stand in the conversation themselves. Nothing is fetched."""

    def payer(self, key: str | None) -> str:
        """Nobody pays: this machine reads."""
        return ""

    async def answer(self, question: Question, key: str | None) -> Answer:
        """Give the text of the image at a ``data:`` URL. Raises EngineUnavailable where it cannot be read."""
        head, comma, encoded = question.text.partition(",")
        if not comma or not head.startswith("data:image/") or not head.endswith(";base64"):
            raise EngineUnavailable("ocr(...) reads images that are in the conversation, not addresses of images")
        if len(encoded) > MAX_IMAGE:
            raise EngineUnavailable(f"ocr(...) reads images of up to {MAX_IMAGE} bytes")
        try:
            image = await asyncio.to_thread(base64.b64decode, encoded, validate=True)
        except (binascii.Error, ValueError):
            raise EngineUnavailable("ocr(...) was given an image that is not base64") from None
        return ((await _read(image)).strip(),)


async def _read(image: bytes) -> str:
    """Raises EngineUnavailable."""
    program = shutil.which(PROGRAM)
    if program is None:
        raise EngineUnavailable(f"ocr(...) needs the program {PROGRAM}, which is not installed")
    try:
        text, status = await _run(program, image)
    except OSError as error:
        raise EngineUnavailable(f"ocr(...) could not run {PROGRAM} ({type(error).__name__})") from None
    if status != 0:
        raise EngineUnavailable("ocr(...) was given an image that cannot be read")
    return text.decode("utf-8", "replace")


async def _run(program: str, image: bytes) -> tuple[bytes, int]:
    """What it printed, and its exit status. Raises OSError where it cannot be run, and EngineUnavailable."""
    kept = {name: value for name, value in os.environ.items() if name in ("PATH", "LANG", "TESSDATA_PREFIX")}
    process = await asyncio.create_subprocess_exec(
        *(program, "stdin", "stdout"),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
        # Nothing of the server's secrets; and one processor for one image.
        env={**kept, "OMP_THREAD_LIMIT": "1"},
        cwd="/",
    )
    try:
        # It has read nothing yet; where it has ended already, its status says how.
        with contextlib.suppress(ProcessLookupError):
            resource.prlimit(process.pid, resource.RLIMIT_AS, (_MEMORY, _MEMORY))
        return await _exchange(process, image), await process.wait()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def _exchange(process: asyncio.subprocess.Process, image: bytes) -> bytes:
    """Write the image and read the text. Raises EngineUnavailable for more than ``MAX_READ`` bytes of it."""
    assert process.stdin is not None and process.stdout is not None
    # One that ends before it has read all says by its status how.
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        process.stdin.write(image)
        await process.stdin.drain()
    process.stdin.close()
    text = b""
    while piece := await process.stdout.read(65_536):
        text += piece
        if len(text) > MAX_READ:
            raise EngineUnavailable(f"ocr(...) found more than {MAX_READ} bytes of text in an image")
    return text
