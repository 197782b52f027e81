"""curl: what it prints, and an error for a status that is one."""

import json
import subprocess
from typing import Any

from tests.clients.matrix.drivers.driver import KEY, MODEL, Ask, Say, serve

_JSON = {"responseMimeType": "application/json", "responseSchema": {"type": "OBJECT", "properties": {}}}


def _post(base_url: str, method: str, **more: Any) -> Ask:
    def ask(prompt: str, say: Say) -> None:
        body = {"contents": [{"role": "user", "parts": [{"text": prompt}]}], **more}
        command = ["curl", "--silent", "--no-buffer", "--write-out", "\n%{http_code}", "--max-time", "30"]
        command += ["--header", f"x-goog-api-key: {KEY}", "--header", "content-type: application/json"]
        command += ["--data", json.dumps(body), f"{base_url}/v1beta/models/{MODEL}:{method}"]
        printed, _, status = subprocess.run(command, capture_output=True, text=True, check=True).stdout.rpartition("\n")
        if status != "200":
            raise RuntimeError(f"{status} {printed}")
        say("".join(_texts(printed)))

    return ask


def _texts(printed: str) -> list[str]:
    """The texts of a whole answer, or of the events of a stream."""
    lines = [line[6:] for line in printed.splitlines() if line.startswith("data: ")]
    answers = [json.loads(line) for line in lines] or [json.loads(printed)]
    parts = [part for answer in answers for part in answer["candidates"][0]["content"]["parts"]]
    return [part.get("text", "") for part in parts]


def stream(base_url: str, **more: Any) -> Ask:
    return _post(base_url, "streamGenerateContent?alt=sse", **more)


if __name__ == "__main__":
    serve(
        {
            "unary": lambda base_url: _post(base_url, "generateContent"),
            "stream": stream,
            "structured": lambda base_url: stream(base_url, generationConfig=_JSON),
        }
    )
