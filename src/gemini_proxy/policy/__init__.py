"""The policy language: rules over conversations, without input or output.

``compile_policy`` reads a text, ``Conversation.of`` reads messages, ``Policy.check`` returns violations.

The language is Invariant's. What differs from its stock engine, and why:

- Precedence, chained comparisons and truth are Python's: ``secrets(m)`` fires if its list is not empty.
- A rule over ``(c: ToolCall)`` needs a tool call, whatever its message.
- ``in`` is literal. A text literal is raw as a pattern and has its escapes read elsewhere.
- ``match`` and tool patterns take line ends with a dot; tool patterns match the whole argument.
- Regular expressions are RE2's, with Python's meaning where RE2 has it; look-around and back references do not load.
- Content of any shape is searched: None counts as ``""``, chunks are searched one by one, data by every string, key and
  number inside. A plain text is one TextChunk; ``(t: str) in x`` takes a text as one text.
- A tool output without ``tool_call_id`` answers the earliest call without an output; one without a call has no tool.
- A missing argument, key or index is None, and tests of None are false. A missing parameter is an error.
- Arguments that are not a JSON object are read as ``c.function.arguments.raw``.
- ``json_loads`` of a text that is not JSON is None. ``print`` writes nothing. ``prompt_injection`` is a heuristic.
- Ranges are those of the binding that fired; a more exact range within an event replaces the event's.
- At most 1,000 violations a rule and 1,000 ranges a violation are reported.
"""

from gemini_proxy.policy.compile.compiler import compile_policy
from gemini_proxy.policy.detectors import Detector, DetectorRegistry, Finding, Parser
from gemini_proxy.policy.detectors.builtin import BUILTIN, kind_of_value
from gemini_proxy.policy.detectors.outside import OUTSIDE, Answer, LabelledSpan, Question, Unanswered
from gemini_proxy.policy.errors import (
    BudgetExceeded,
    ConversationError,
    EvaluationError,
    Fault,
    PolicyError,
    PolicyWarning,
)
from gemini_proxy.policy.lint.formatter import format_policy
from gemini_proxy.policy.lint.portability import portability
from gemini_proxy.policy.policy import MAX_VIOLATIONS, CompiledRule, Policy, Rule, RuleViolation, RuleWindow
from gemini_proxy.policy.prefilter import FoundNeeds, Prefilter, prefilter_of
from gemini_proxy.policy.run.budget import Budget
from gemini_proxy.policy.run.events import Conversation
from gemini_proxy.policy.run.pinning import PINS_PARAMETER, readable_pins, tool_declaration, tool_digest
from gemini_proxy.policy.run.provenance.labels import LABELS_PARAMETER, joined_labels, readable_parameters
from gemini_proxy.policy.run.provenance.restored import RESTORED_PARAMETER
from gemini_proxy.policy.run.ranges import MAX_RANGES
from gemini_proxy.policy.run.regex import MAX_PROGRAM
from gemini_proxy.policy.session import OpenTurn, Place, Session

__all__ = [
    "BUILTIN",
    "LABELS_PARAMETER",
    "MAX_PROGRAM",
    "MAX_RANGES",
    "MAX_VIOLATIONS",
    "OUTSIDE",
    "PINS_PARAMETER",
    "RESTORED_PARAMETER",
    "Answer",
    "Budget",
    "BudgetExceeded",
    "CompiledRule",
    "Conversation",
    "ConversationError",
    "Detector",
    "DetectorRegistry",
    "EvaluationError",
    "Fault",
    "Finding",
    "OpenTurn",
    "LabelledSpan",
    "Parser",
    "Place",
    "Policy",
    "PolicyError",
    "PolicyWarning",
    "Prefilter",
    "Question",
    "Rule",
    "RuleViolation",
    "RuleWindow",
    "Session",
    "FoundNeeds",
    "Unanswered",
    "compile_policy",
    "format_policy",
    "tool_declaration",
    "tool_digest",
    "joined_labels",
    "kind_of_value",
    "portability",
    "prefilter_of",
    "readable_parameters",
    "readable_pins",
]
