"""Create the services behind detectors from the configuration, and name those that a policy lacks."""

import asyncio
import contextlib
import shutil
from collections.abc import Iterable, Mapping
from typing import Final

from gemini_proxy.config import Config
from gemini_proxy.guardrails.asking import Allowance, AskedService, Asking
from gemini_proxy.guardrails.classifier import InjectionClassifier, missing
from gemini_proxy.guardrails.judge import GeminiJudge
from gemini_proxy.guardrails.model_armor import ModelArmorAnswerer
from gemini_proxy.guardrails.ocr import PROGRAM, Tesseract
from gemini_proxy.guardrails.presidio import PresidioAnswerer, missing_for
from gemini_proxy.guardrails.semgrep import NAME as SEMGREP
from gemini_proxy.guardrails.semgrep import SemgrepAnswerer, program_path
from gemini_proxy.guardrails.service_client import ServiceClient
from gemini_proxy.guardrails.workers import PROCESSES, Workers
from gemini_proxy.sections import Judge
from gemini_proxy.sections import ModelArmor as Armor

JUDGED: Final = ("decision", "llm", "moderated")
CLASSIFIED: Final = "injection_model"
READ: Final = "presidio"
ARMORED: Final = ("model_armor", "moderated")
"""``moderated`` is Model Armor's where both are there: filters that are made for it."""


class AskedServices:
    """The services of a configuration, as ``asking``. An asynchronous context manager: they can be asked inside it."""

    def __init__(self, config: Config) -> None:
        self._clients: list[ServiceClient] = []
        # One process: a model takes its memory in each.
        self._scoring = Workers(1)
        self._reading = Workers(1)
        self.asking = Asking(self._services(config))

    async def __aenter__(self) -> "AskedServices":
        async with contextlib.AsyncExitStack() as stack:
            for client in self._clients:
                await stack.enter_async_context(client)
            self._stack = stack.pop_all()
        return self

    async def __aexit__(self, *_: object) -> None:
        self._scoring.close()
        self._reading.close()
        await self._stack.aclose()

    def _services(self, config: Config) -> Mapping[str, AskedService]:
        services = {"ocr": AskedService(Tesseract(), config.guardrails.timeout, places=asyncio.Semaphore(PROCESSES))}
        seconds = config.guardrails.semgrep.timeout
        services[SEMGREP] = AskedService(SemgrepAnswerer(), seconds, places=asyncio.Semaphore(PROCESSES))
        presidio = config.guardrails.presidio
        reads = PresidioAnswerer(presidio.model, presidio.language, presidio.threshold, self._reading, presidio.timeout)
        services[READ] = AskedService(reads, presidio.timeout)
        judge = config.guardrails.judge
        if judge.model is not None:
            asked = self._judge(config, judge, judge.model)
            services.update(dict.fromkeys(JUDGED, asked))
        armor = config.guardrails.model_armor
        if armor.template is not None:
            services.update(dict.fromkeys(ARMORED, self._armor(armor, armor.template)))
        classifier = config.guardrails.classifier
        if classifier.path is not None:
            scores = InjectionClassifier(classifier.path, classifier.threshold, self._scoring, classifier.timeout)
            services[CLASSIFIED] = AskedService(scores, classifier.timeout)
        return services

    def _judge(self, config: Config, judge: Judge, model: str) -> AskedService:
        own, upstream = judge.api_key, config.upstream
        client = self._client("the judge")
        answerer = GeminiJudge(
            client,
            judge.url or upstream.base_url,
            model,
            own.get_secret_value() if own else None,
            upstream.api_key.get_secret_value() if upstream.api_key else None,
        )
        return AskedService(answerer, judge.timeout, Allowance(judge.questions_per_minute, judge.questions_per_day))

    def _armor(self, armor: Armor, template: str) -> AskedService:
        token = armor.token.get_secret_value() if armor.token else None
        answerer = ModelArmorAnswerer(self._client("Model Armor"), template, token, armor.url)
        return AskedService(answerer, armor.timeout, Allowance(armor.questions_per_minute, armor.questions_per_day))

    def _client(self, who: str) -> ServiceClient:
        client = ServiceClient(who)
        self._clients.append(client)
        return client


def unanswerable(config: Config, names: Iterable[str]) -> list[str]:
    """Say of each detector that nobody would answer what is missing for it. Raises nothing, asks nobody."""
    model = config.guardrails.presidio.model
    needed = {**_NEEDED, CLASSIFIED: _needed_to_classify(config), READ: missing_for(model)}
    return [
        f"{_WRITTEN.get(name, f'{name}(...)')} needs {needed[name]}"
        for name in sorted(names)
        if not _is_answered(config, name)
    ]


def _needed_to_classify(config: Config) -> str | None:
    folder = config.guardrails.classifier.path
    return "a classifier: set guardrails.classifier.path" if folder is None else missing(folder)


_WRITTEN: Final = {READ: 'pii(..., model="presidio")'}
_NEEDED: Final = {
    "ocr": f"the program {PROGRAM}: install tesseract-ocr, or what your system calls it",
    SEMGREP: f'the program {SEMGREP}: pip install "gemini-proxy[semgrep]"',
    **dict.fromkeys(JUDGED, "a judge: set guardrails.judge.model"),
    "model_armor": "Model Armor: set guardrails.model_armor.template",
    "moderated": "a judge or Model Armor: set guardrails.judge.model or guardrails.model_armor.template",
}


def _is_answered(config: Config, name: str) -> bool:
    if name == CLASSIFIED:
        return _needed_to_classify(config) is None
    if name == SEMGREP:
        return program_path() is not None
    if name == READ:
        return missing_for(config.guardrails.presidio.model) is None
    if name == "ocr":
        return shutil.which(PROGRAM) is not None
    judge, armor = config.guardrails.judge, config.guardrails.model_armor
    return (name in JUDGED and judge.model is not None) or (name in ARMORED and armor.template is not None)
