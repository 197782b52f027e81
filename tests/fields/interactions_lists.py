"""Where a string may stand in what google-genai sends to the Interactions API and reads from it, by its types."""

import typing
from typing import Any

from google.genai import interactions as types

from tests.fields.openai_lists import Field, fields_of


def interaction_requests() -> dict[str, list[Field]]:
    """Return the fields of requests, by who is asked."""
    return {"model": fields_of(types.CreateModelInteraction), "agent": fields_of(types.CreateAgentInteraction)}


def interaction_responses() -> dict[str, list[Field]]:
    """Return the fields of whole interactions and of the events of streams, by their type."""
    return {"interaction": fields_of(types.Interaction)} | {
        name: fields_of(model) for name, model in _members(types.InteractionSSEEvent)
    }


def _members(union: Any) -> list[tuple[str, Any]]:
    while typing.get_origin(union) is typing.Annotated:
        union = typing.get_args(union)[0]
    return [(each.__name__, each) for each in typing.get_args(union) if not each.__name__.startswith("Unknown")]
