"""The policy language: rules over conversations, without input or output.

``compile_policy`` reads a text, ``Conversation.of`` reads messages, ``Policy.check`` gives violations.
"""

from gemini_proxy.policy.budget import Budget
from gemini_proxy.policy.compile import compile_policy
from gemini_proxy.policy.detectors import Detector, DetectorRegistry, Finding
from gemini_proxy.policy.errors import BudgetExceeded, ConversationError, EvaluationError, PolicyError, Warning
from gemini_proxy.policy.events import Conversation
from gemini_proxy.policy.policy import Policy
from gemini_proxy.policy.rules import Rule, RuleScope, Violation

__all__ = [
    "Budget",
    "BudgetExceeded",
    "Conversation",
    "ConversationError",
    "Detector",
    "DetectorRegistry",
    "EvaluationError",
    "Finding",
    "Policy",
    "PolicyError",
    "Rule",
    "RuleScope",
    "Violation",
    "Warning",
    "compile_policy",
]
