"""Refusals of our own in a conversation's history: clients send them back as what the model said.

A rule's message may well contain what the rule looks for; without this, one refusal would refuse every later turn.
"""

import re
from collections.abc import Sequence

from gemini_proxy.gemini.messages import Message
from gemini_proxy.guardrails.rules import Guardrail

_SENTENCE = " did not pass the guardrails"


class OwnWords:
    """Takes refusals out of what rules read, where each word of them is known to be ours.

    Anyone can write our prefix: only the messages of the rules in force, and only those that are the same whatever the
    rule found, are taken for our own words. Anything else stays, and is checked.
    """

    def __init__(self, prefix: str) -> None:
        start = re.escape(f"{prefix} The ".lstrip())
        self._refusal = re.compile(rf"{start}(?:request|response){_SENTENCE}(?:: (.*?))?\s*\Z", re.DOTALL)

    def left_out(self, messages: Sequence[Message], rules: Sequence[Guardrail]) -> Sequence[Message]:
        """The messages, those of the model without a refusal at their end."""
        if not any(_may_hold(message) for message in messages):
            return messages
        known = {rule.message for guardrail in rules for rule in guardrail.policy.rules if rule.message}
        return [self._without(message, known) if _may_hold(message) else message for message in messages]

    def _without(self, message: Message, known: set[str]) -> Message:
        text: str = message["content"]
        found = self._refusal.search(text)
        if found is None or not _made_of(found[1] or "", known):
            return message
        return {**message, "content": text[: found.start()]}


def _may_hold(message: Message) -> bool:
    content = message.get("content")
    return message.get("role") == "assistant" and type(content) is str and _SENTENCE in content


def _made_of(why: str, known: set[str]) -> bool:
    """True where ``why`` is nothing but known messages, each followed by ``"; "`` or the end."""
    while why:
        said = next((message for message in known if why == message or why.startswith(f"{message}; ")), None)
        if said is None:
            return False
        why = why[len(said) :].removeprefix("; ")
    return True
