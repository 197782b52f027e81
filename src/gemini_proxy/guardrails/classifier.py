"""Classify injections with an ONNX model, in a folder laid out as on Hugging Face.

It runs in processes of its own, one window of text at a time: the score of a quantized model depends on the rest of its
batch, and no text may change the verdict on another.

A classifier of meaning misses attacks that their words give away, and takes harmless texts without any such words for
attacks. So a head judges a window by the model's logits and by its words. The head's weights are in
``classifier_head.npz``, which ``bench.classifier_head`` makes; they only fit the model that they were made with.
"""

import asyncio
import hashlib
import json
import math
import re
import zlib
from collections.abc import Iterator, Sequence
from functools import lru_cache
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

from gemini_proxy.errors import EngineUnavailable
from gemini_proxy.guardrails.workers import Workers
from gemini_proxy.policy import Answer, Question

_PACKAGES: Final = ("numpy", "onnxruntime", "tokenizers")
MAX_TEXT: Final = 100_000
"""Characters of one text: about 110 windows, which took 2.3 seconds of processor time with a model of 23 MB."""
_WINDOW: Final = 256
_OVERLAP: Final = 64
"""Tokens of a window, and those that it shares with the one before."""
_FILES: Final = ("model_quantized.onnx", "model.onnx", "onnx/model_quantized.onnx", "onnx/model.onnx")
_HARMLESS: Final = ("safe", "benign", "legit", "label_0", "no_injection")
_WORD: Final = re.compile(r"[^\W_]+")
_HEAD_FILE: Final = Path(__file__).with_name("classifier_head.npz")


def missing(folder: Path) -> str | None:
    """Name what a classifier in the folder lacks, None if it can be loaded."""
    if any(find_spec(name) is None for name in _PACKAGES):
        return 'the packages of pip install "gemini-proxy[classifier]"'
    if model_file(folder) is None or not (folder / "tokenizer.json").is_file():
        return f"a model: {folder} has no tokenizer.json with one of {', '.join(_FILES)}"
    return None


class InjectionClassifier:
    """Answer whether the model's score of a text is at least ``threshold``. Score texts that come together at once."""

    def __init__(self, folder: Path, threshold: float, workers: Workers, seconds: float) -> None:
        self._folder = folder
        self._threshold = threshold
        self._workers = workers
        self._seconds = seconds
        self._waiting: list[tuple[str, asyncio.Future[float]]] = []

    def payer(self, key: str | None) -> str:
        """Return "": nobody pays, and answers are the same for everyone."""
        return ""

    async def answer(self, question: Question, key: str | None) -> Answer:
        """Answer ``injection_model``. Raises EngineUnavailable for a long text, a model that fails, or a timeout."""
        if len(question.text) > MAX_TEXT:
            raise EngineUnavailable(f"A text of more than {MAX_TEXT} characters is too long for the classifier")
        score: asyncio.Future[float] = asyncio.get_running_loop().create_future()
        self._waiting.append((question.text, score))
        if len(self._waiting) == 1:
            await self._score_all()
        return await score >= self._threshold

    async def _score_all(self) -> None:
        """Score all texts that have come by the next turn of the loop."""
        batch = self._waiting
        try:
            await asyncio.sleep(0)
            self._waiting = []
            texts = [text for text, _ in batch]
            scores = await self._workers.run_within("", self._seconds, score_texts, str(self._folder), texts)
            for (_, waiting), score in zip(batch, scores, strict=True):
                if not waiting.done():
                    waiting.set_result(score)
        finally:
            if self._waiting is batch:
                self._waiting = []
            # The first one belongs to this caller, who gets the error itself.
            for _, waiting in batch[1:]:
                if not waiting.done():
                    waiting.set_exception(EngineUnavailable("The classifier gave no score"))


def score_texts(folder: str, texts: Sequence[str]) -> list[float]:
    """Return each text's highest score of its windows, from 0 to 1. Raises EngineUnavailable."""
    try:
        model = _model(folder)
        return [model.score(text) for text in texts]
    except EngineUnavailable:
        raise
    except Exception as error:
        # The runtime and the tokenizer raise their own error types, whose messages say what is wrong.
        raise EngineUnavailable(f"The classifier failed: {type(error).__name__}: {error}") from None


@lru_cache(maxsize=1)
def _model(folder: str) -> "OnnxModel":
    return OnnxModel(Path(folder))


class OnnxModel:
    """A loaded model with its tokenizer."""

    def __init__(self, folder: Path) -> None:
        import onnxruntime
        from tokenizers import Tokenizer

        file = model_file(folder)
        if (reason := missing(folder)) is not None or file is None:
            raise EngineUnavailable(f"The classifier needs {reason}")
        options = onnxruntime.SessionOptions()
        # The processes already run in parallel.
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        self._session: Any = onnxruntime.InferenceSession(str(file), options)
        self._inputs = {entry.name for entry in self._session.get_inputs()}
        self._tokenizer: Any = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self._tokenizer.no_padding()
        self._tokenizer.enable_truncation(max_length=_WINDOW, stride=_OVERLAP)
        self._several_heads = bool(_read(folder / "classifier_config.json").get("multi_head"))
        self._head = head_of(file)
        labels = _read(folder / "config.json").get("id2label") or {}
        self._harmless = next((int(key) for key, name in labels.items() if str(name).lower() in _HARMLESS), 0)

    def score(self, text: str) -> float:
        """Return the highest score of the text's windows, from 0 to 1: the head's where the model has one."""
        return max(self._score(logits, within) for within, logits in self.windows(text))

    def windows(self, text: str) -> Iterator[tuple[str, list[float]]]:
        """Yield the windows of the text that the model reads, and its score for each."""
        first = self._tokenizer.encode(text)
        for window in (first, *first.overflowing):
            ends = [end for _, end in window.offsets]
            start = next((start for start, end in window.offsets if end), 0)
            yield text[start : max(ends, default=0)], self._logits(window)

    def _logits(self, window: Any) -> list[float]:
        import numpy

        arrays = {"input_ids": window.ids, "attention_mask": window.attention_mask, "token_type_ids": window.type_ids}
        feed = {
            name: numpy.array([values], dtype=numpy.int64) for name, values in arrays.items() if name in self._inputs
        }
        return [float(value) for value in self._session.run(None, feed)[0].reshape(-1)]

    def _score(self, logits: Sequence[float], text: str) -> float:
        if self._head is not None:
            return self._head.score(logits, text)
        if len(logits) == 1 or self._several_heads:
            # The first head is the verdict; the others were only used in training.
            return 1 / (1 + math.exp(-max(-50.0, min(50.0, logits[0]))))
        shares = [math.exp(value - max(logits)) for value in logits]
        return 1 - shares[self._harmless] / sum(shares)


def model_file(folder: Path) -> Path | None:
    return next((folder / name for name in _FILES if (folder / name).is_file()), None)


def _read(file: Path) -> dict[str, Any]:
    if not file.is_file():
        return {}
    value = json.loads(file.read_text(encoding="utf-8"))
    return value if isinstance(value, dict) else {}


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

    if not _HEAD_FILE.is_file():
        # The file is about to be made.
        return None
    with numpy.load(_HEAD_FILE) as made:
        if str(made["model"]) != digest_of(model):
            return None
        return ClassifierHead(made["weights"], made["table"])


def digest_of(model: Path) -> str:
    """Return the fingerprint of a model."""
    with model.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
