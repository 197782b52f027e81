"""A dataset whose rules are in the store, made as any client makes one."""

import json
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import Any, Final

from bench.processes import ProcessError
from bench.workload import DATASET, KEY, Workload

_TIMEOUT: Final = 10.0
_REFUSED: Final = {
    "contents": [
        {"role": "model", "parts": [{"text": f"AIza{'0' * 35}"}]},
        {"role": "user", "parts": [{"text": "Whose is it?"}]},
    ]
}
"""A conversation that both policies of the bench refuse."""


def make_dataset(port: int, policy: Path) -> None:
    """Make the dataset with ``policy``, and see it refuse something. Raises ProcessError."""
    status, dataset = _post(port, "/api/v1/dataset/create", {"name": DATASET})
    if status == 200:
        rules = {"name": policy.name, "policy": policy.read_text(), "action": "block"}
        status, dataset = _post(port, f"/api/v1/dataset/{dataset['id']}/policy", rules)
    if status != 200:
        raise ProcessError(f"the dataset cannot be made: {status} {dataset}")
    status, answer = _post(port, Workload("unary", port, 1, 1, dataset=DATASET).target, _REFUSED)
    if status != 400 or "Invariant" not in json.dumps(answer):
        raise ProcessError(f"the dataset's rules do not hold: {status} {answer}")


def _post(port: int, path: str, body: object) -> tuple[int, Any]:
    connection = HTTPConnection("127.0.0.1", port, timeout=_TIMEOUT)
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {KEY}", "x-goog-api-key": "bench"}
    try:
        connection.request("POST", path, json.dumps(body), headers)
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read())
    except (OSError, HTTPException, ValueError) as error:
        raise ProcessError(f"POST {path}: {error!r}") from error
    finally:
        connection.close()
