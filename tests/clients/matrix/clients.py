"""The clients of the matrix: what each is installed from, and which driver it has."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

Kind = Literal["python", "node", "own"]
"""Where a driver runs: in a Python or a folder of Node packages of the client's own, or in this one's Python."""


@dataclass(frozen=True, slots=True)
class Client:
    """``packages`` are pinned, the one that the client is named after first.

    ``driver`` is a file among the drivers, without its ending; ``folder`` is shared by clients of the same packages.
    ``hides`` are the columns in which the client is known to keep to itself why something was refused by an event.
    """

    name: str
    kind: Kind
    driver: str
    packages: tuple[str, ...] = ()
    folder: str = ""
    operations: frozenset[str] = frozenset({"unary", "stream", "structured", "tool", "tool_stream"})
    hides: frozenset[str] = frozenset()

    @property
    def place(self) -> str:
        return self.folder or self.driver


def _with(*more: str, without: Sequence[str] = ()) -> frozenset[str]:
    return frozenset({"unary", "stream", "structured", "tool", "tool_stream", *more} - set(without))


_GOOGLE_GENAI: Final = ("google-genai==3.6.1", "aiohttp==3.14.5")
_GOOGLE_ADK: Final = ("google-adk==2.13.0", "google-genai==2.34.0")

CLIENTS: Final = (
    Client("google-genai (Python)", "python", "google_genai", _GOOGLE_GENAI, operations=_with("chat")),
    Client(
        "google-genai (asyncio)",
        "python",
        "google_genai_async",
        _GOOGLE_GENAI,
        folder="google_genai",
        operations=_with("chat"),
    ),
    Client(
        "google-genai (Vertex AI)",
        "python",
        "google_genai_vertex",
        _GOOGLE_GENAI,
        folder="google_genai",
        operations=_with("chat"),
    ),
    Client(
        "google-genai (Interactions)",
        "python",
        "google_genai_interactions",
        _GOOGLE_GENAI,
        folder="google_genai",
        operations=_with("chat"),
    ),
    Client("vertexai", "python", "vertexai", ("google-cloud-aiplatform==2.7.0",), operations=_with("chat")),
    Client("@google/genai", "node", "genai", ("@google/genai@3.3.0",), operations=_with("chat")),
    Client(
        "gemini-cli",
        "own",
        "gemini_cli",
        ("@google/gemini-cli@0.61.0",),
        operations=frozenset({"stream", "tool_stream", "chat"}),
    ),
    Client("google-adk", "python", "google_adk", _GOOGLE_ADK, operations=_with("chat")),
    Client(
        "google-adk (Interactions)",
        "python",
        "google_adk_interactions",
        _GOOGLE_ADK,
        folder="google_adk",
        operations=_with("chat"),
    ),
    Client(
        "langchain-google-genai",
        "python",
        "langchain",
        ("langchain-google-genai==4.4.3", "langchain-core==1.8.3", "google-genai==3.6.1"),
        hides=frozenset({"refused answer: structured"}),
    ),
    Client(
        "@langchain/google-genai",
        "node",
        "langchain",
        ("@langchain/google-genai@2.3.2", "@langchain/core@1.4.0", "zod@4.6.7"),
        folder="langchain_js",
    ),
    Client("openai", "python", "openai", ("openai==3.57.0",), operations=_with("chat")),
    Client(
        "langchain-openai",
        "python",
        "langchain_openai",
        ("langchain-openai==1.7.4", "langchain-core==1.8.3", "openai==3.57.0"),
        hides=frozenset({"refused answer: structured"}),
    ),
    Client("litellm", "python", "litellm", ("litellm==1.110.2",)),
    Client("AI SDK (@ai-sdk/google)", "node", "ai_sdk", ("@ai-sdk/google@3.0.141", "ai@6.0.326", "zod@4.6.7")),
    Client("Genkit", "node", "genkit", ("@genkit-ai/google-genai@1.42.0", "genkit@1.42.0")),
    Client(
        "pydantic-ai",
        "python",
        "pydantic_ai",
        ("pydantic-ai-slim[google]==2.68.0", "google-genai==2.34.0"),
        operations=_with("chat"),
        hides=frozenset({"refused answer: structured"}),
    ),
    Client(
        "instructor",
        "python",
        "instructor",
        ("instructor==1.17.0", "google-genai==3.6.1", "jsonref==1.1.0"),
        operations=_with(without=("tool", "tool_stream")),
    ),
    Client(
        "llama-index",
        "python",
        "llama_index",
        ("llama-index-llms-google-genai==0.11.3", "llama-index-core==0.14.25", "google-genai==2.34.0"),
        operations=_with("chat"),
        hides=frozenset({"forbidden call: stream", "refused request: stream", "refused answer: stream"}),
    ),
    Client(
        "google-generativeai",
        "python",
        "google_generativeai",
        ("google-generativeai==0.8.6",),
        operations=_with("chat", without=("tool_stream",)),
    ),
    Client(
        "@google/generative-ai",
        "node",
        "generative_ai",
        ("@google/generative-ai@0.24.1",),
        operations=_with("chat"),
    ),
    Client("curl", "own", "curl", operations=frozenset({"unary", "stream", "structured"})),
)
