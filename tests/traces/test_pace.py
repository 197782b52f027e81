import sys
import time

from gemini_proxy.traces.search.pace import FIRST_TEXTS, HASTE, place_pace, text_pace


def _ends() -> float:
    return time.perf_counter() + 60.0


def test_a_search_for_a_text_begins_with_few_places_and_then_takes_all() -> None:
    pace = text_pace(_ends())
    assert (pace.size, pace.carefully, pace.patience) == (FIRST_TEXTS, True, None)
    pace.step(FIRST_TEXTS)
    assert (pace.size, pace.carefully, pace.patience) == (sys.maxsize, False, HASTE)


def test_when_all_is_too_much_it_goes_on_carefully() -> None:
    pace = text_pace(_ends())
    pace.step(FIRST_TEXTS)
    assert not pace.late()
    assert pace.carefully and 0 < pace.size <= 16 * FIRST_TEXTS and not pace.over
    pace.step(pace.size)
    assert pace.late()


def test_without_time_the_first_look_is_the_last() -> None:
    pace = place_pace(time.perf_counter(), True)
    assert not pace.over
    pace.step(pace.size)
    assert pace.over


def test_without_time_a_search_for_a_text_ends_with_the_look_at_everything() -> None:
    pace = text_pace(time.perf_counter())
    pace.step(pace.size)
    assert not pace.over
    assert pace.late() and pace.over
