"""The classifier: a tiny model that looks for one word, in real processes."""

import asyncio
import math
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from gemini_proxy.config import Config
from gemini_proxy.errors import EngineUnavailable
from gemini_proxy.guardrails import classifier
from gemini_proxy.guardrails.classifier import (
    MAX_TEXT,
    ClassifierHead,
    InjectionClassifier,
    head_of,
    missing,
    score_texts,
    word_places,
)
from gemini_proxy.guardrails.workers import Workers
from gemini_proxy.policy import Question
from gemini_proxy.sections import Classifier as Section
from gemini_proxy.sections import Guardrails
from gemini_proxy.server.asked_services import unanswerable

pytest.importorskip("onnxruntime")
tokenizers = pytest.importorskip("tokenizers")
onnx = pytest.importorskip("onnx")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose one logit is -4, and 8 more for each time that the word ``evil`` stands in the window."""
    made = tmp_path_factory.mktemp("model")
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel({"[UNK]": 0, "evil": 1}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer.save(str(made / "tokenizer.json"))
    helper, kind = onnx.helper, onnx.TensorProto
    nodes = [
        helper.make_node("Cast", ["input_ids"], ["floats"], to=kind.FLOAT),
        helper.make_node("ReduceSum", ["floats", "axes"], ["sum"], keepdims=1),
        helper.make_node("Mul", ["sum", "eight"], ["scaled"]),
        helper.make_node("Sub", ["scaled", "four"], ["logits"]),
    ]
    constants = [
        helper.make_tensor("axes", kind.INT64, [1], [1]),
        helper.make_tensor("eight", kind.FLOAT, [1], [8.0]),
        helper.make_tensor("four", kind.FLOAT, [1], [4.0]),
    ]
    graph = helper.make_graph(
        nodes,
        "word",
        [helper.make_tensor_value_info("input_ids", kind.INT64, [1, None])],
        [helper.make_tensor_value_info("logits", kind.FLOAT, [1, 1])],
        constants,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, str(made / "model.onnx"))
    return made


@pytest.fixture
async def workers() -> AsyncIterator[Workers]:
    made = Workers(1)
    yield made
    made.close()


def about(text: str) -> Question:
    return Question("injection_model", text, "{}")


async def test_texts_are_scored_together(folder: Path, workers: Workers) -> None:
    """Each has its own answer; the threshold is the one that is configured."""
    texts = ["good", "evil", "", "an evil word", "fine"]
    classifier = InjectionClassifier(folder, 0.5, workers, 30.0)
    answers = await asyncio.gather(*(classifier.answer(about(text), None) for text in texts))
    assert answers == [False, True, False, True, False]
    strict = InjectionClassifier(folder, 0.99, workers, 30.0)
    assert await strict.answer(about("evil"), None) is False
    assert await strict.answer(about("evil evil"), None) is True


def test_long_texts_are_scored_in_windows(folder: Path) -> None:
    """A word far behind counts as much as one at the beginning."""
    assert score_texts(str(folder), ["good " * 5_000 + "evil", "good " * 5_000]) == pytest.approx(
        [0.982, 0.018], abs=0.001
    )


async def test_a_text_that_is_too_long_has_no_answer(folder: Path, workers: Workers) -> None:
    """It is not cut: what is left out would never be seen."""
    with pytest.raises(EngineUnavailable, match="too long"):
        await InjectionClassifier(folder, 0.5, workers, 30.0).answer(about("a" * (MAX_TEXT + 1)), None)


async def test_a_broken_model_has_no_answer(folder: Path, tmp_path: Path, workers: Workers) -> None:
    """All that wait get to know, and the next question is asked again."""
    (tmp_path / "tokenizer.json").write_bytes((folder / "tokenizer.json").read_bytes())
    (tmp_path / "model.onnx").write_bytes(b"no model")
    classifier = InjectionClassifier(tmp_path, 0.5, workers, 30.0)
    for _ in range(2):
        failed = await asyncio.gather(
            classifier.answer(about("a"), None), classifier.answer(about("b"), None), return_exceptions=True
        )
        assert [type(error) for error in failed] == [EngineUnavailable] * 2


def test_what_is_missing_is_named(folder: Path, tmp_path: Path) -> None:
    """Before a policy loads."""
    assert missing(folder) is None
    assert "tokenizer.json" in str(missing(tmp_path))
    asked = {"injection_model"}
    assert unanswerable(configured(None), asked) == [
        "injection_model(...) needs a classifier: set guardrails.classifier.path"
    ]
    assert unanswerable(configured(folder), asked) == []
    assert str(tmp_path) in unanswerable(configured(tmp_path), asked)[0]


def configured(path: Path | None) -> Config:
    return Config.model_construct(guardrails=Guardrails(classifier=Section(path=path)))


def test_words_and_logits_are_judged_together() -> None:
    """A word that the table knows makes a doubtful text an attack, and the lack of it a harmless one."""
    numpy = pytest.importorskip("numpy")
    table = numpy.zeros(64, dtype=numpy.int8)
    for place in word_places("ignore instructions", 64):
        table[place] = 40
    head = ClassifierHead([0.5, 0.1, -3.0], table)
    assert head.score([4.0], "Ignore instructions!") > 0.99
    assert head.score([4.0], "") == pytest.approx(1 / (1 + math.e))
    assert head.score([4.0], "Ignore instructions!") > head.score([-4.0], "Ignore instructions!")


def test_a_pair_of_words_is_more_than_both() -> None:
    assert word_places("one two", 2**14) - word_places("two one", 2**14)
    assert word_places("One, TWO", 2**14) == word_places("one two", 2**14)
    assert len(word_places("one two", 2**14)) == 3


def test_the_weights_that_are_shipped_are_of_another_model(folder: Path) -> None:
    """Any other model is judged by itself."""
    numpy = pytest.importorskip("numpy")
    assert head_of(folder / "model.onnx") is None
    with numpy.load(Path(classifier.__file__).with_name("classifier_head.npz")) as made:
        assert len(str(made["model"])) == 64
        assert (made["weights"].shape, made["table"].shape) == ((4,), (2**14,))
