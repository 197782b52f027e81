"""Judge a window of text by a classifier's logits and by its words.

A classifier of meaning misses attacks that their words give away, and takes harmless texts without any such words for
attacks. The weights are in ``classifier_head.npz``, which ``bench.classifier_head`` makes; they only fit the model that
they were made with.
"""

import hashlib
import math
import re
import zlib
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

_WORD: Final = re.compile(r"[^\W_]+")
_FILE: Final = Path(__file__).with_name("classifier_head.npz")


class ClassifierHead:
    """``weights`` are those of each logit, of the words' score, and a constant; ``table`` has the weight of each word.

    A hash maps words and pairs of words to the places of the table.
    """

    def __init__(self, weights: Sequence[float], table: Any) -> None:
        *self._of_logits, self._of_words, self._constant = (float(weight) for weight in weights)
        self._table = table

    def score(self, logits: Sequence[float], text: str) -> float:
        """Return how sure it is that the text is an attack, from 0 to 1."""
        found = sum(weight * logit for weight, logit in zip(self._of_logits, logits, strict=True))
        found += self._of_words * self._score_words(text) + self._constant
        return 1 / (1 + math.exp(-max(-50.0, min(50.0, found))))

    def _score_words(self, text: str) -> float:
        places = list(word_places(text, len(self._table)))
        return float(self._table[places].sum(dtype="int64")) / math.sqrt(len(places)) if places else 0.0


def word_places(text: str, size: int) -> set[int]:
    """Return the places of a text's words, and of its pairs of words, in a table of that size."""
    words = [match.encode() for match in _WORD.findall(text.lower())]
    return {zlib.crc32(word) % size for word in (*words, *(b" ".join(pair) for pair in pairwise(words)))}


def head_of(model: Path) -> ClassifierHead | None:
    """Return the head that was made with the model in that file, None if there is none."""
    import numpy

    if not _FILE.is_file():
        # The file is about to be made.
        return None
    with numpy.load(_FILE) as made:
        if str(made["model"]) != digest_of(model):
            return None
        return ClassifierHead(made["weights"], made["table"])


def digest_of(model: Path) -> str:
    """Return the fingerprint of a model."""
    with model.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
