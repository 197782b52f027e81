"""``python -m tests.differential.stock_tests``: the stock engine's own tests, each of their checks made here as well.

The tests run unchanged under the interpreter that ``make oracle`` makes, with a plug-in that writes down every check.
Compared is whether anything was found; each check that differs is printed.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from gemini_proxy.policy import Conversation, ConversationError, EvaluationError, PolicyError, compile_policy
from tests.differential.compatibility import SOURCES
from tests.differential.oracle import MISSING, PYTHON

_TESTS: Final = SOURCES / "invariant_ai-0.3.5" / "invariant" / "tests" / "analyzer"


@dataclass(frozen=True, slots=True)
class Made:
    """A check that a test made: ``errors`` is how many violations it gave, None where it raised.

    Of the messages the first ``past`` are not asked about.
    """

    policy: str
    messages: Sequence[Mapping[str, Any]]
    parameters: Mapping[str, Any]
    past: int
    errors: int | None

    @property
    def there(self) -> str:
        """What the stock engine said."""
        return _word(self.errors)

    @property
    def here(self) -> str:
        """What our engine says: as there, or why it says nothing."""
        try:
            policy = compile_policy(self.policy)
        except PolicyError as error:
            return f"does not load: {error.line}:{error.column} {error.reason}"
        try:
            found = policy.check(Conversation.of(self.messages), self.parameters)
        except (EvaluationError, ConversationError) as error:
            return f"raises: {error}"
        return _word(sum(self._is_new(one.ranges) for one in found))

    def _is_new(self, ranges: Sequence[str]) -> bool:
        return not self.past or any(int(place.split(".")[1]) >= self.past for place in ranges)


def _word(errors: int | None) -> str:
    return "raises" if errors is None else "fires" if errors else "clean"


def made() -> Iterator[Made]:
    """Run the tests, and give every check that they made of a policy's text, each once."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "checks.jsonl"
        file.touch()
        command = [str(PYTHON), "-m", "pytest", "-p", "stock_recorder", "-p", "no:cacheprovider", str(_TESTS)]
        environment = {
            "PATH": os.defpath, "LANG": "C.UTF-8", "LOCAL_POLICY": "1",
            "PYTHONPATH": str(Path(__file__).parent), "STOCK_CHECKS": str(file),
        }  # fmt: skip
        # Some of them need a model, or files that the distribution has not: they fail, and made no check.
        subprocess.run(
            [*command, "--continue-on-collection-errors"], env=environment, stdout=subprocess.DEVNULL, check=False
        )
        lines = dict.fromkeys(file.read_text(encoding="utf-8").splitlines())
    for line in lines:
        check = json.loads(line)
        if check["policy"] is not None:
            yield Made(**check)


def main() -> None:
    """Print how many checks agree, and those that do not."""
    if not PYTHON.exists() or not _TESTS.exists():
        sys.exit(MISSING)
    words: Counter[str] = Counter()
    for check in made():
        here = check.here
        agrees = here.startswith(("raises", "does not load")) if check.there == "raises" else here == check.there
        words["agree" if agrees else "differ"] += 1
        if not agrees:
            print(f"--- there {check.there}, here {here}\n{check.policy.strip()}\n{json.dumps(check.messages)[:600]}")
    print(f"{words.total()} checks: {words['agree']} agree, {words['differ']} differ")


if __name__ == "__main__":
    main()
