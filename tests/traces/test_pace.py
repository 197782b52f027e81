import sys
import time

from gemini_proxy.traces.search.pace import BUDGET, FIRST_TEXTS, HASTE, Learnt, place_pace, text_pace


def _ends() -> float:
    return time.perf_counter() + 60.0


def test_a_search_for_a_text_begins_with_few_places_and_then_takes_all() -> None:
    pace = text_pace(_ends(), None)
    assert (pace.size, pace.carefully, pace.patience) == (FIRST_TEXTS, True, None)
    pace.step(FIRST_TEXTS)
    assert (pace.size, pace.carefully, pace.patience) == (sys.maxsize, False, HASTE)
    assert pace.learnt() is None


def test_when_all_is_too_much_it_goes_on_carefully_and_remembers() -> None:
    pace = text_pace(_ends(), None)
    pace.step(FIRST_TEXTS)
    assert not pace.late()
    assert pace.carefully and 0 < pace.size <= 16 * FIRST_TEXTS and not pace.over
    pace.step(pace.size)
    assert pace.late()
    places = pace.learnt()
    assert places is not None and places >= FIRST_TEXTS
    assert text_pace(_ends(), places).carefully


def test_what_was_learnt_may_prove_too_much_once() -> None:
    """Then the page comes further however long that takes."""
    pace = text_pace(_ends(), 10**9)
    assert (pace.size, pace.patience) == (10**9, BUDGET)
    assert not pace.late()
    assert (pace.size, pace.patience, pace.carefully) == (FIRST_TEXTS, None, True)


def test_without_time_the_first_look_is_the_last() -> None:
    for pace in (place_pace(time.perf_counter(), True), text_pace(time.perf_counter(), FIRST_TEXTS)):
        assert not pace.over
        pace.step(pace.size)
        assert pace.over


def test_only_the_last_searches_are_remembered() -> None:
    learnt = Learnt()
    for number in range(1_000):
        learnt.put(number, number)
    assert learnt.get(999) == 999
    assert sum(learnt.get(number) is not None for number in range(1_000)) <= 256
