"""No string field of Gemini's own lists goes unread, unnamed and unlisted."""

from fnmatch import fnmatchcase

import pytest

from tests.fields.table import (
    CONTROL,
    INTERACTION_CONTROL,
    LIVE_CONTROL,
    OPENAI_CONTROL,
    Row,
    batch_rows,
    decision_rows,
    interaction_rows,
    listed_as,
    live_rows,
    openai_rows,
    rows,
)


@pytest.fixture(scope="module")
def table() -> list[Row]:
    return rows()


def test_no_field_is_silent(table: list[Row]) -> None:
    """A rule reads it, the trace names it as not checked, the body is refused, or it is a control field."""
    assert [f"{row.direction}: {row.path}" for row in table if row.found == "silent"] == []


def test_no_field_of_a_response_within_a_batch_is_silent() -> None:
    """Each response of a batch is read as any other is."""
    assert [row.path for row in batch_rows() if row.found == "silent"] == []


def test_no_field_of_the_openai_path_is_silent() -> None:
    """The same of what OpenAI's SDK sends and reads."""
    table = openai_rows()
    assert {f"{row.direction} {row.path}" for row in table if row.found == "silent"} == OPENAI_CONTROL.keys()
    paths = {(row.direction, row.path) for row in table}
    assert {
        ("chat/completions", "messages.tool_calls.function.arguments"),
        ("chat/completions", "tools.function.parameters.*"),
        ("chat/completions", "metadata.{key}"),
        ("chat.completion", "choices.message.annotations.url_citation.title"),
        ("chat.completion.chunk", "choices.delta.tool_calls.function.arguments"),
    } <= paths
    assert len(paths) > 150


def test_no_field_of_interactions_is_silent() -> None:
    """The same of what Google's SDK sends to the Interactions API and reads from it."""
    table = interaction_rows()
    silent = [f"{row.direction} {row.path}" for row in table if row.found == "silent"]
    listed = {name: [row for row in silent if fnmatchcase(row, name)] for name in INTERACTION_CONTROL}
    assert set(silent) == {row for rows in listed.values() for row in rows}
    assert all(listed.values())
    paths = {(row.direction, row.path) for row in table}
    assert {
        ("model", "input.content.annotations.title"),
        ("model", "tools.headers.*"),
        ("agent", "agent_config.find_request.source_files.content"),
        ("interaction", "steps.result.search_suggestions"),
        ("StepDelta", "delta.arguments"),
        ("StepStart", "step.content.text"),
    } <= paths
    assert len(paths) > 1000


def test_no_field_of_live_frames_is_silent() -> None:
    """The same of what Google's SDK sends in a live session and reads there."""
    table = live_rows()
    silent = [f"{row.direction} {row.path}" for row in table if row.found == "silent"]
    listed = {name: [row for row in silent if fnmatchcase(row, name)] for name in LIVE_CONTROL}
    assert set(silent) == {row for rows in listed.values() for row in rows}
    assert all(listed.values())
    seen = {(row.direction, row.path) for row in table if row.found == "seen"}
    assert {
        ("client", "setup.labels.*"),
        ("client", "contextUpdate.systemInstruction.parts.text"),
        ("client", "toolResponse.functionResponses.response.*"),
        ("server", "serverContent.outputTranscription.words.word"),
        ("server", "serverContent.inputTranscription.text"),
        ("server", "toolCall.functionCalls.args.*"),
    } <= seen
    assert len(table) > 500


def test_no_field_of_decisions_is_silent() -> None:
    """The same of what Google's SDK asks."""
    table = decision_rows()
    assert {row.path for row in table if row.found == "silent"} == {"model"}
    seen = {row.path for row in table if row.found == "seen"}
    assert {"input", "input.text", "instructions", "instructions.text", "criteria.true_description"} <= seen
    assert {"criteria", "criteria.*", "criteria.{key}"} <= seen


def test_the_list_names_nothing_in_vain(table: list[Row]) -> None:
    """A field that is read by now, or that Google has no more, is not on the list of control fields."""
    control = {name for row in table if row.found == "control" for name in listed_as(row)}
    assert set(CONTROL) - control == set()


def test_both_spellings_are_read_alike(table: list[Row]) -> None:
    """snake_case fields are of the same classes."""
    assert rows(_snake_case) == table


def test_the_lists_are_whole(table: list[Row]) -> None:
    """Both of Google's lists were walked: fields that only one of them has are there, maps and open JSON too."""
    paths = {(row.direction, row.path) for row in table}
    assert {
        ("response", "candidates.groundingAttributions.content.parts.text"),
        ("response", "candidates.groundingMetadata.groundingChunks.image.title"),
        ("response", "candidates.content.parts.functionCall.args.{key}"),
        ("generateContent", "labels.{key}"),
        ("generateContent", "generationConfig.responseJsonSchema.*.*"),
        ("generateContent", "outputConfig.outputUriPrefix"),
        ("countTokens", "generateContentRequest.contents.parts.text"),
        ("batchEmbedContents", "requests.title"),
    } <= paths
    assert len(paths) > 1000


def _snake_case(name: str) -> str:
    return "".join(f"_{char.lower()}" if char.isupper() else char for char in name)
