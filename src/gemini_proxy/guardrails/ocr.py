"""Read text in images for ``ocr``, with the program tesseract in a process of its own: strangers send images."""

import asyncio
import base64
import binascii
import os
import shutil
from typing import Final

from gemini_proxy.errors import EngineUnavailable
from gemini_proxy.guardrails.programs import IsolatedProgram, TooMuch
from gemini_proxy.policy import Answer, Question

PROGRAM: Final = "tesseract"
MAX_IMAGE: Final = 20_971_520
"""Bytes of an encoded image: what Gemini takes inline."""
MAX_READ: Final = 1_048_576
"""Bytes of text that are taken from one image."""
_MEMORY: Final = 1 << 30
"""Bytes of address space of a process: an image of a few bytes may unfold into gigabytes."""


class Tesseract:
    """Read images that are in the conversation itself. Nothing is fetched."""

    def payer(self, key: str | None) -> str:
        """Return "": nobody pays for what this machine reads."""
        return ""

    async def answer(self, question: Question, key: str | None) -> Answer:
        """Return the text of the image in a ``data:`` URL. Raises EngineUnavailable if it cannot be read."""
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
    """Run the program over an image. Raises EngineUnavailable."""
    path = shutil.which(PROGRAM)
    if path is None:
        raise EngineUnavailable(f"ocr(...) needs the program {PROGRAM}, which is not installed")
    # Use one processor per image.
    environment = {"OMP_THREAD_LIMIT": "1"}
    if (data := os.environ.get("TESSDATA_PREFIX")) is not None:
        environment["TESSDATA_PREFIX"] = data
    try:
        text, status = await IsolatedProgram((path, "stdin", "stdout"), environment, _MEMORY, MAX_READ).run(image)
    except OSError as error:
        raise EngineUnavailable(f"ocr(...) could not run {PROGRAM} ({type(error).__name__})") from None
    except TooMuch:
        raise EngineUnavailable(f"ocr(...) found more than {MAX_READ} bytes of text in an image") from None
    if status != 0:
        raise EngineUnavailable("ocr(...) was given an image that cannot be read")
    return text.decode("utf-8", "replace")
