"""``pii(..., model="presidio")``: what it needs, and Presidio itself where it is installed, with a model of our own."""

from collections.abc import AsyncIterator
from importlib.util import find_spec
from pathlib import Path

import pytest

from gemini_proxy.config import Config
from gemini_proxy.errors import EngineUnavailable
from gemini_proxy.guardrails.engine import Check
from gemini_proxy.guardrails.native import NativeEngine
from gemini_proxy.guardrails.presidio import MAX_TEXT, PresidioAnswerer
from gemini_proxy.guardrails.rules import guardrail
from gemini_proxy.guardrails.verdict import Verdict
from gemini_proxy.guardrails.workers import Workers
from gemini_proxy.policy import OUTSIDE, Conversation, LabelledSpan, PolicyError, Question, Unanswered, compile_policy
from gemini_proxy.policy.detectors.builtin import BUILTIN
from gemini_proxy.sections import Guardrails
from gemini_proxy.sections import Presidio as Section
from gemini_proxy.server.asked_services import AskedServices, unanswerable

POLICY = """
from invariant.detectors import pii

raise "names somebody" if:
    (m: Message)
    "PERSON" in pii(m, ["PERSON", "LOCATION"], model="presidio")
"""
INSTALLED = find_spec("presidio_analyzer") is not None
needs_presidio = pytest.mark.skipif(not INSTALLED, reason='needs pip install "gemini-proxy[presidio]"')


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pipeline of spaCy's that finds names by a list."""
    import spacy

    folder = tmp_path_factory.mktemp("model")
    pipeline = spacy.blank("en")
    names = {"PERSON": "Ada Lovelace", "GPE": "Zurich", "ORG": "Initech"}
    pipeline.add_pipe("entity_ruler").add_patterns([{"label": key, "pattern": name} for key, name in names.items()])
    pipeline.to_disk(folder)
    return folder


@pytest.fixture
async def workers() -> AsyncIterator[Workers]:
    made = Workers(1)
    yield made
    made.close()


def config(model: Path | str) -> Config:
    return Config.model_construct(guardrails=Guardrails(presidio=Section(model=str(model), timeout=30.0)))


def about(text: str, options: str = "{}") -> Question:
    return Question("presidio", text, options)


@pytest.mark.skipif(INSTALLED, reason="Presidio is installed")
def test_without_the_extra_a_policy_does_not_load() -> None:
    assert unanswerable(config("en_core_web_sm"), ["presidio"]) == [
        'pii(..., model="presidio") needs the packages of pip install "gemini-proxy[presidio]"'
    ]


@needs_presidio
def test_without_its_model_a_policy_does_not_load() -> None:
    """Presidio would download it."""
    assert unanswerable(config("no_such_model"), ["presidio"]) == [
        'pii(..., model="presidio") needs a spaCy model: guardrails.presidio.model is no_such_model, '
        "neither an installed package nor a model's folder"
    ]


def test_rules_of_clients_cannot_ask_it() -> None:
    with pytest.raises(PolicyError, match="needs Presidio and a language model; only the policy files of a server"):
        guardrail("p", POLICY, "block")


def test_what_has_a_place_is_marked_there() -> None:
    """In each text that was asked about, and in a turn that came in pieces over their seam."""
    policy = compile_policy(
        'from invariant.detectors import pii\n\nraise Violation("a name", labels=found) if:\n'
        '    (m: Message)\n    found := pii(m, model="presidio")\n    "PERSON" in found\n',
        detectors=BUILTIN.with_detectors(*OUTSIDE),
    )
    said = [("user", "by Ada"), ("user", " Lovelace, to Ada Lovelace"), ("user", "."), ("assistant", "no one")]
    conversation = Conversation.of([{"role": role, "content": text} for role, text in said])
    with pytest.raises(Unanswered) as missing:
        policy.check(conversation)
    asked, other = missing.value.questions
    assert (asked, other) == (about("by Ada Lovelace, to Ada Lovelace."), about("no one"))
    answers = {asked: (LabelledSpan(3, 15, "PERSON"), LabelledSpan(20, 32, "PERSON")), other: ()}
    # It belongs to the message that it ends in; the others of the turn have none.
    (violation,) = policy.check(conversation, answers=answers)
    assert violation.kwargs == {"labels": ["PERSON", "PERSON"]}
    assert violation.ranges == (
        "messages.1.content:0-9",
        "messages.1.content:14-26",
        "messages.0.content:3-6",
    )


def test_it_is_asked_about_whole_answers() -> None:
    """Not about each piece of a stream: it reads sentences."""
    text = POLICY.replace('"PERSON" in pii(m, ["PERSON", "LOCATION"], ', "any(pii(m.content, ").replace('")', '"))')
    (asked,), (found,) = (
        guardrail("p", each, "block", asks=True).policy.rules for each in (text, text.replace(', model="presidio"', ""))
    )
    assert (asked.window, found.window) == ("whole", "hint")


@pytest.mark.parametrize("written", ['"presido"', "m.content"])
def test_the_model_is_one_that_there_is(written: str) -> None:
    with pytest.raises(PolicyError, match='must be written in the call as "presidio"'):
        guardrail("p", POLICY.replace('"presidio"', written), "block", asks=True)


@needs_presidio
async def test_a_policy_finds_names_where_they_stand(model: Path) -> None:
    messages = [
        {"role": "user", "content": "In Zurich lives Ada Lovelace."},
        {"role": "assistant", "content": "Oh."},
        {"role": "user", "content": "Zurich is a town."},
    ]
    async with AskedServices(config(model)) as asked_services:
        engine = NativeEngine(Workers(1), 30.0, asking=asked_services.asking)
        judging = engine.check(Check((guardrail("p", POLICY, "block", asks=True),), messages))
        verdict = judging if isinstance(judging, Verdict) else await judging
    (violation,) = verdict.violations
    assert violation.ranges == ("messages.0.content:3-9", "messages.0.content:16-28")


@needs_presidio
async def test_it_finds_all_that_presidio_does(model: Path, workers: Workers) -> None:
    presidio = PresidioAnswerer(str(model), "en", 0.5, workers, 30.0)
    text = "\N{GRINNING FACE} Ada Lovelace of Initech, Zurich, ada@example.org"
    found = await presidio.answer(about(text), None)
    assert isinstance(found, tuple)
    assert {(text[each.start : each.end], each.label) for each in found if isinstance(each, LabelledSpan)} == {
        ("Ada Lovelace", "PERSON"),
        ("Initech", "ORGANIZATION"),
        ("Zurich", "LOCATION"),
        ("ada@example.org", "EMAIL_ADDRESS"),
        ("example.org", "URL"),
    }
    assert await presidio.answer(about(text, '{"entities":"LOCATION"}'), None) == (LabelledSpan(27, 33, "LOCATION"),)
    assert await presidio.answer(about(text, '{"entities":[]}'), None) == ()
    assert await PresidioAnswerer(str(model), "en", 0.9, workers, 30.0).answer(about("Ada Lovelace"), None) == ()
    with pytest.raises(EngineUnavailable, match="does not find PERSONS in texts of the language en"):
        await presidio.answer(about(text, '{"entities":["PERSON","PERSONS"]}'), None)


@needs_presidio
async def test_a_text_has_its_time_and_the_next_one_is_read(model: Path, workers: Workers) -> None:
    """Loading is no part of that time; the process is one that was ended for it."""
    with pytest.raises(EngineUnavailable, match="timed out"):
        await PresidioAnswerer(str(model), "en", 0.5, workers, 0.2).answer(about("Ada Lovelace, " * 7_000), None)
    found = await PresidioAnswerer(str(model), "en", 0.5, workers, 30.0).answer(about("Ada Lovelace"), None)
    assert found == (LabelledSpan(0, 12, "PERSON"),)


async def test_a_text_that_is_too_long_has_no_answer(workers: Workers) -> None:
    """It is not cut: what is left out would never be seen."""
    with pytest.raises(EngineUnavailable, match="too long"):
        await PresidioAnswerer("en_core_web_sm", "en", 0.5, workers, 30.0).answer(about("a" * (MAX_TEXT + 1)), None)


@needs_presidio
async def test_a_model_that_does_not_load_has_no_answer(tmp_path: Path, workers: Workers) -> None:
    (tmp_path / "config.cfg").write_text("nothing")
    with pytest.raises(EngineUnavailable, match="Presidio does not load"):
        await PresidioAnswerer(str(tmp_path), "en", 0.5, workers, 30.0).answer(about("a"), None)
