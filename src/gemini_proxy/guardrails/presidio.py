"""Find names, places, organizations and other entities with presidio-analyzer and a local spaCy model.

It runs in a process of its own, which loads both once. Nothing is downloaded; by default Presidio would download a
missing model and a list of domains.
"""

import json
import logging
from functools import lru_cache, partial
from importlib.metadata import PackageNotFoundError, distribution
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

from gemini_proxy.errors import EngineUnavailable
from gemini_proxy.guardrails.workers import Workers
from gemini_proxy.policy import Answer, LabelledSpan, Question

MAX_TEXT: Final = 100_000
"""Characters of one text."""
LOADING: Final = 60.0
"""Seconds that the process has for loading Presidio and its model."""


def missing_for(model: str) -> str | None:
    """Name what is not installed for the spaCy model ``model``, None if everything is. Loads nothing."""
    if find_spec("presidio_analyzer") is None:
        return 'the packages of pip install "gemini-proxy[presidio]"'
    if not _is_folder(model) and not _is_package(model):
        return f"a spaCy model: guardrails.presidio.model is {model}, neither an installed package nor a model's folder"
    return None


class PresidioAnswerer:
    """Answer what Presidio finds in a text with a score of ``threshold`` or more, within ``seconds`` for each text."""

    def __init__(self, model: str, language: str, threshold: float, workers: Workers, seconds: float) -> None:
        self._model = model
        self._language = language
        self._threshold = threshold
        self._workers = workers
        self._seconds = seconds

    def payer(self, key: str | None) -> str:
        """Return "": nobody pays, and answers are the same for everyone."""
        return ""

    async def answer(self, question: Question, key: str | None) -> Answer:
        """Answer ``pii``. Raises EngineUnavailable for a long text, unknown entities, a failure, or a timeout."""
        if len(question.text) > MAX_TEXT:
            raise EngineUnavailable(f"A text of more than {MAX_TEXT} characters is too long for Presidio")
        entities = json.loads(question.options).get("entities")
        wanted = None if entities is None else [entities] if isinstance(entities, str) else list(entities)
        # Loading continues after its caller has left: if the process were killed each time, it would never finish.
        await self._workers.run_within("", LOADING, load, self._model, self._language)
        reading = partial(find, self._model, self._language, self._threshold)
        return await self._workers.run_within("", self._seconds, reading, question.text, wanted)


def load(model: str, language: str) -> None:
    """Load Presidio and its model unless they are loaded. Raises EngineUnavailable."""
    try:
        _analyzer(model, language)
    except EngineUnavailable:
        raise
    except Exception as error:
        # Presidio and spaCy raise their own error types, whose messages say what is wrong.
        raise EngineUnavailable(f"Presidio does not load: {type(error).__name__}: {error}") from None


def find(
    model: str, language: str, threshold: float, text: str, entities: list[str] | None = None
) -> tuple[LabelledSpan, ...]:
    """Return the entities that Presidio finds in ``text``, limited to ``entities`` if given.

    Raises EngineUnavailable, also for entities that Presidio does not know: a misspelled one would never be found.
    """
    load(model, language)
    analyzer = _analyzer(model, language)
    if unknown := sorted(set(entities or ()) - set(analyzer.get_supported_entities(language))):
        raise EngineUnavailable(f"Presidio does not find {', '.join(unknown)} in texts of the language {language}")
    if entities == []:
        return ()
    try:
        results = analyzer.analyze(text, language, entities, score_threshold=threshold)
    except Exception as error:
        # The error's text may quote the text that was read.
        raise EngineUnavailable(f"Presidio failed: {type(error).__name__}") from None
    places = {(result.start, result.end, result.entity_type) for result in results}
    return tuple(LabelledSpan(*place) for place in sorted(places))


@lru_cache(maxsize=1)
def _analyzer(model: str, language: str) -> Any:
    if (reason := missing_for(model)) is not None:
        raise EngineUnavailable(f'pii(..., model="presidio") needs {reason}')
    import tldextract
    from presidio_analyzer import AnalyzerEngine
    from presidio_analyzer.nlp_engine import NlpEngineProvider

    # Use the list of domains inside the package: the default downloads a newer one.
    tldextract.extract = tldextract.TLDExtract(suffix_list_urls=(), cache_dir=None)
    # Its log lines may quote the texts that it reads.
    logging.getLogger("presidio-analyzer").disabled = True
    models = [{"lang_code": language, "model_name": model}]
    engine = NlpEngineProvider(nlp_configuration={"nlp_engine_name": "spacy", "models": models}).create_engine()
    return AnalyzerEngine(nlp_engine=engine, supported_languages=[language])


def _is_folder(model: str) -> bool:
    return (Path(model) / "config.cfg").is_file()


def _is_package(model: str) -> bool:
    """Return whether spaCy, and so Presidio, takes the model for a package."""
    try:
        distribution(model)
    except PackageNotFoundError:
        return False
    return True
