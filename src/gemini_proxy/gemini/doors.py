"""List the doors: every known method of the API, what the proxy does about it, and its wire.

The configuration opens and closes doors; a row is one method behind a door. A method without a row is not served.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import cache
from types import MappingProxyType
from typing import Final, Literal


class Duty(StrEnum):
    """The proxy's treatment of a door: check its traffic, pass it unread, or keep it shut."""

    GUARD = "guard"
    PASS = "pass"  # noqa: S105
    DENY = "deny"


class Method(StrEnum):
    """The method of a call. The values are Google's verbs, or similar words for a path without one."""

    GENERATE = "generateContent"
    STREAM = "streamGenerateContent"
    COUNT_TOKENS = "countTokens"
    COMPUTE_TOKENS = "computeTokens"
    EMBED = "embedContent"
    BATCH_EMBED = "batchEmbedContents"
    LIST_MODELS = "listModels"
    GET_MODEL = "getModel"
    PREDICT = "predict"
    PREDICT_LONG_RUNNING = "predictLongRunning"
    FETCH_PREDICT_OPERATION = "fetchPredictOperation"
    GET_OPERATION = "getOperation"
    LIVE_INTERACTION = "liveInteraction"
    CREATE_INTERACTION = "createInteraction"
    GET_INTERACTION = "getInteraction"
    CANCEL_INTERACTION = "cancelInteraction"
    DELETE_INTERACTION = "deleteInteraction"
    DECIDE = "createDecision"
    LIVE = "bidiGenerateContent"
    LIVE_CONSTRAINED = "bidiGenerateContentConstrained"
    LIVE_MUSIC = "bidiGenerateMusic"
    CREATE_AUTH_TOKEN = "createAuthToken"
    DELETE_AUTH_TOKEN = "deleteAuthToken"
    CREATE_CACHED_CONTENT = "createCachedContent"
    LIST_CACHED_CONTENTS = "listCachedContents"
    GET_CACHED_CONTENT = "getCachedContent"
    UPDATE_CACHED_CONTENT = "updateCachedContent"
    DELETE_CACHED_CONTENT = "deleteCachedContent"
    UPLOAD_FILE = "uploadFile"
    LIST_FILES = "listFiles"
    GET_FILE = "getFile"
    DELETE_FILE = "deleteFile"
    DOWNLOAD_FILE = "downloadFile"
    UPLOAD_CHUNK = "uploadChunk"
    REGISTER_FILES = "registerFiles"
    CREATE_FILE_SEARCH_STORE = "createFileSearchStore"
    LIST_FILE_SEARCH_STORES = "listFileSearchStores"
    GET_FILE_SEARCH_STORE = "getFileSearchStore"
    DELETE_FILE_SEARCH_STORE = "deleteFileSearchStore"
    UPLOAD_TO_FILE_SEARCH_STORE = "uploadToFileSearchStore"
    IMPORT_FILE = "importFile"
    LIST_DOCUMENTS = "listDocuments"
    GET_DOCUMENT = "getDocument"
    DELETE_DOCUMENT = "deleteDocument"
    GET_FILE_SEARCH_OPERATION = "getFileSearchOperation"
    DOWNLOAD_MEDIA = "downloadMedia"
    BATCH_GENERATE = "batchGenerateContent"
    BATCH_EMBED_LATER = "asyncBatchEmbedContent"
    LIST_BATCHES = "listBatches"
    GET_BATCH = "getBatch"
    CANCEL_BATCH = "cancelBatch"
    UPDATE_BATCH = "updateBatch"
    DELETE_BATCH = "deleteBatch"
    CREATE_TUNED_MODEL = "createTunedModel"
    LIST_TUNED_MODELS = "listTunedModels"
    GET_TUNED_MODEL = "getTunedModel"
    UPDATE_MODEL = "updateModel"
    DELETE_MODEL = "deleteModel"
    GET_TUNING_OPERATION = "getTuningOperation"
    CREATE_TUNING_JOB = "createTuningJob"
    LIST_TUNING_JOBS = "listTuningJobs"
    GET_TUNING_JOB = "getTuningJob"
    CANCEL_TUNING_JOB = "cancelTuningJob"
    VALIDATE_TUNING_REWARD = "validateReinforcementTuningReward"
    CREATE_AGENT = "createAgent"
    LIST_AGENTS = "listAgents"
    GET_AGENT = "getAgent"
    DELETE_AGENT = "deleteAgent"
    CREATE_TRIGGER = "createTrigger"
    LIST_TRIGGERS = "listTriggers"
    GET_TRIGGER = "getTrigger"
    UPDATE_TRIGGER = "updateTrigger"
    DELETE_TRIGGER = "deleteTrigger"
    RUN_TRIGGER = "runTrigger"
    LIST_TRIGGER_EXECUTIONS = "listTriggerExecutions"
    CREATE_ENVIRONMENT = "createEnvironment"
    LIST_ENVIRONMENTS = "listEnvironments"
    GET_ENVIRONMENT = "getEnvironment"
    DELETE_ENVIRONMENT = "deleteEnvironment"
    WRITE_ENVIRONMENT_FILE = "writeEnvironmentFile"
    READ_ENVIRONMENT_FILE = "readEnvironmentFile"
    CREATE_CREDENTIAL = "createCredential"
    LIST_CREDENTIALS = "listCredentials"
    GET_CREDENTIAL = "getCredential"
    UPDATE_CREDENTIAL = "updateCredential"
    DELETE_CREDENTIAL = "deleteCredential"
    CREATE_WEBHOOK = "createWebhook"
    LIST_WEBHOOKS = "listWebhooks"
    GET_WEBHOOK = "getWebhook"
    UPDATE_WEBHOOK = "updateWebhook"
    DELETE_WEBHOOK = "deleteWebhook"
    PING_WEBHOOK = "pingWebhook"
    ROTATE_SIGNING_SECRET = "rotateSigningSecret"
    CREATE_VOICE = "createVoice"
    LIST_VOICES = "listVoices"
    GET_VOICE = "getVoice"
    DELETE_VOICE = "deleteVoice"
    OPENAI_CHAT = "openaiChatCompletions"
    OPENAI_EMBED = "openaiEmbeddings"
    OPENAI_LIST_MODELS = "openaiListModels"
    OPENAI_GET_MODEL = "openaiGetModel"
    OPENAI_IMAGES = "openaiImages"
    OPENAI_RESPONSES = "openaiResponses"
    OPENAI_FILES = "openaiFiles"
    OPENAI_BATCHES = "openaiBatches"
    VERTEX_CREATE = "vertexCreate"
    VERTEX_READ = "vertexRead"
    VERTEX_UPDATE = "vertexUpdate"
    VERTEX_DELETE = "vertexDelete"
    GENERATE_ANSWER = "generateAnswer"
    GENERATE_TEXT = "generateText"
    RAW_PREDICT = "rawPredict"
    QUERY_CORPUS = "queryCorpus"


@dataclass(frozen=True, slots=True)
class Door:
    """The values of ``doors.{name}`` in the configuration, and its default."""

    name: str
    about: str
    duties: tuple[Duty, ...]
    default: Duty


_GUARDED: Final = (Duty.GUARD, Duty.DENY)
_PASSED: Final = (Duty.PASS, Duty.DENY)
_SHUT: Final = (Duty.DENY,)

_DOORS: Final = (
    Door("generate", "responses of models", _GUARDED, Duty.GUARD),
    Door("tokens", "token counts", _GUARDED, Duty.GUARD),
    Door("embed", "embeddings", _GUARDED, Duty.GUARD),
    Door("models", "lists of models", _PASSED, Duty.PASS),
    Door("vertex", "the methods of other doors on Vertex AI", _GUARDED, Duty.GUARD),
    Door("images", "images from a prompt (Imagen), and other predictions", _GUARDED, Duty.GUARD),
    Door("video", "videos from a prompt (Veo), and their progress", _GUARDED, Duty.GUARD),
    Door("interactions", "the Interactions API", _GUARDED, Duty.GUARD),
    Door("live_interactions", "interactions over a WebSocket", _SHUT, Duty.DENY),
    Door("decisions", "closed questions about a text", _GUARDED, Duty.GUARD),
    Door("live", "the Live API", _GUARDED, Duty.GUARD),
    Door("live_tokens", "the Live API with ephemeral tokens", _SHUT, Duty.DENY),
    Door("live_music", "live music sessions", _SHUT, Duty.DENY),
    Door("auth_tokens", "ephemeral tokens, which reach Google without the proxy", _PASSED, Duty.DENY),
    Door("caches", "cached contents that later requests name", _GUARDED, Duty.GUARD),
    Door("files", "files that later requests name", _GUARDED, Duty.GUARD),
    Door("registered_files", "files in a Cloud Storage bucket that later requests name", _PASSED, Duty.DENY),
    Door("file_search", "document stores that models search", _PASSED, Duty.DENY),
    Door("batches", "batches of requests, whose responses are fetched later", _GUARDED, Duty.GUARD),
    Door("batch_updates", "changes to a batch under way", _PASSED, Duty.DENY),
    Door("tuning", "tuned models and tuning jobs", _PASSED, Duty.DENY),
    Door("agents", "agents that run at Google", _PASSED, Duty.DENY),
    Door("triggers", "interactions that start later, by themselves", _PASSED, Duty.DENY),
    Door("environments", "environments that agents run in, with their files and secrets", _PASSED, Duty.DENY),
    Door("credentials", "credentials that agents log in with", _PASSED, Duty.DENY),
    Door("webhooks", "webhooks that results are sent to", _PASSED, Duty.DENY),
    Door("voices", "voices made from samples", _PASSED, Duty.DENY),
    Door("openai", "chat completions and embeddings in OpenAI's form", _GUARDED, Duty.GUARD),
    Door("openai_other", "the rest of the OpenAI path", _SHUT, Duty.DENY),
    Door("vertex_other", "the rest of Vertex AI", _SHUT, Duty.DENY),
    Door("legacy", "methods older than generateContent", _SHUT, Duty.DENY),
)
DOORS: Final[Mapping[str, Door]] = MappingProxyType({door.name: door for door in _DOORS})
DEFAULT_DUTIES: Final[Mapping[str, Duty]] = MappingProxyType({door.name: door.default for door in _DOORS})

Host = Literal["gemini", "vertex"]
Transport = Literal["json", "bytes", "upload", "websocket"]


@dataclass(frozen=True, slots=True)
class Row:
    """One method: ``http`` on any of ``paths`` is a call of it, behind ``door``.

    ``wire`` names the reader of its bodies (``gemini.wires``). ``generates`` says that the response is checked as well,
    and ``streams`` that it is a stream whatever the body says. A ``bare`` method carries no content of a user: it is
    neither checked nor recorded. ``query`` names the parameters that go upstream besides those of every call; ``media``
    allows ``alt=media``. ``transport`` is the kind of the bodies: JSON, any bytes, parts of a file, or frames of a
    WebSocket. ``bearer`` says that the Gemini key goes upstream as ``Authorization: Bearer``, and in no other header.

    ``keeps`` says that Gemini keeps something of the call under a name: its request is checked before it leaves, and
    the name is remembered. ``kept`` is the kind of object that a method shows, changes or deletes; each holder reaches
    only their own objects. Such a method that is not bare shows text that a model wrote, and becomes an exchange once
    there is any.

    In a path ``{v}`` is the version, which clients may leave out where it is a step of its own. Any other name in
    braces is one of the call's ``names``.
    """

    method: Method
    door: str
    http: str
    paths: tuple[str, ...]
    wire: str = "generate"
    generates: bool = False
    streams: bool = False
    bare: bool = False
    query: frozenset[str] = frozenset()
    media: bool = False
    transport: Transport = "json"
    keeps: bool = False
    kept: str = ""
    bearer: bool = False


_PAGES: Final = frozenset({"pageSize", "pageToken", "page_size", "page_token"})
_MASK: Final = frozenset({"updateMask", "update_mask"})
_FORCE: Final = frozenset({"force"})


_PLACE: Final = "/{v}/projects/{project}/locations/{location}"
_VERTEX: Final = ("/{v}/projects/", "/{v}/publishers/", "/ws/google.cloud.aiplatform.")


def _verb(method: Method, *collections: str) -> tuple[str, ...]:
    return tuple(f"/{{v}}/{collection}/{{model}}:{method}" for collection in collections)


def _on_vertex(method: Method) -> tuple[str, ...]:
    """Return a method's paths on Vertex AI: a model of Google's, the same with an express key, an endpoint."""
    return (
        f"{_PLACE}/publishers/google/models/{{model}}:{method}",
        f"/{{v}}/publishers/google/models/{{model}}:{method}",
        f"{_PLACE}/endpoints/{{endpoint}}:{method}",
    )


def _models(path: str) -> tuple[str, ...]:
    return f"/{{v}}/models{path}", f"{_PLACE}/publishers/google/models{path}", f"/{{v}}/publishers/google/models{path}"


def _caches(path: str) -> tuple[str, ...]:
    return f"/{{v}}/cachedContents{path}", f"{_PLACE}/cachedContents{path}"


def _kept(kind: str, door: str, *rows: Row) -> Iterator[Row]:
    """Yield rows of what Gemini keeps of a kind, behind one door."""
    return (replace(row, door=door, bare=True, kept=kind) for row in rows)


_VERTEX_KINDS: Final = ("batchPredictionJobs", "tuningJobs", "reasoningEngines", "ragCorpora")
_RAW: Final = ("rawPredict", "streamRawPredict", "serverStreamingPredict")

_ROWS: Final = (
    Row(
        Method.GENERATE,
        "generate",
        "POST",
        (*_verb(Method.GENERATE, "models", "tunedModels", "dynamic"), *_on_vertex(Method.GENERATE)),
        generates=True,
    ),
    Row(
        Method.STREAM,
        "generate",
        "POST",
        (*_verb(Method.STREAM, "models", "tunedModels", "dynamic"), *_on_vertex(Method.STREAM)),
        generates=True,
        streams=True,
    ),
    Row(
        Method.COUNT_TOKENS, "tokens", "POST", (*_verb(Method.COUNT_TOKENS, "models"), *_on_vertex(Method.COUNT_TOKENS))
    ),
    Row(Method.COMPUTE_TOKENS, "tokens", "POST", _on_vertex(Method.COMPUTE_TOKENS)),
    Row(Method.EMBED, "embed", "POST", (*_verb(Method.EMBED, "models"), *_on_vertex(Method.EMBED))),
    Row(Method.BATCH_EMBED, "embed", "POST", _verb(Method.BATCH_EMBED, "models")),
    Row(Method.LIST_MODELS, "models", "GET", _models(""), bare=True, query=_PAGES),
    Row(Method.GET_MODEL, "models", "GET", _models("/{model}"), bare=True),
    Row(
        Method.PREDICT,
        "images",
        "POST",
        (*_verb(Method.PREDICT, "models"), *_on_vertex(Method.PREDICT)),
        wire="predictions",
        generates=True,
    ),
    Row(
        Method.PREDICT_LONG_RUNNING,
        "video",
        "POST",
        (*_verb(Method.PREDICT_LONG_RUNNING, "models"), *_on_vertex(Method.PREDICT_LONG_RUNNING)),
        wire="predictions",
        generates=True,
        keeps=True,
    ),
    Row(
        Method.FETCH_PREDICT_OPERATION,
        "video",
        "POST",
        (*_verb(Method.FETCH_PREDICT_OPERATION, "models"), *_on_vertex(Method.FETCH_PREDICT_OPERATION)),
        wire="predictions",
        generates=True,
    ),
    Row(
        Method.GET_OPERATION,
        "video",
        "GET",
        (
            "/{v}/models/{model}/operations/{id}",
            f"{_PLACE}/publishers/google/models/{{model}}/operations/{{id}}",
            "/{v}/operations/{id}",
        ),
        wire="predictions",
        generates=True,
    ),
    Row(Method.LIVE_INTERACTION, "live_interactions", "GET", ("/{v}/interactions/live",), transport="websocket"),
    Row(
        Method.CREATE_INTERACTION,
        "interactions",
        "POST",
        ("/{v}/interactions",),
        wire="interactions",
        generates=True,
        keeps=True,
    ),
    Row(
        Method.GET_INTERACTION,
        "interactions",
        "GET",
        ("/{v}/interactions/{id}",),
        wire="interactions",
        generates=True,
        query=frozenset({"stream", "last_event_id", "include_input"}),
    ),
    Row(
        Method.CANCEL_INTERACTION,
        "interactions",
        "POST",
        ("/{v}/interactions/{id}/cancel",),
        wire="interactions",
        generates=True,
    ),
    *_kept("interaction", "interactions", Row(Method.DELETE_INTERACTION, "", "DELETE", ("/{v}/interactions/{id}",))),
    Row(Method.DECIDE, "decisions", "POST", ("/{v}/decisions",), wire="decisions"),
    Row(
        Method.LIVE,
        "live",
        "GET",
        (
            "/ws/google.ai.generativelanguage.{v}.GenerativeService.BidiGenerateContent",
            "/ws/google.cloud.aiplatform.{v}.LlmBidiService/BidiGenerateContent",
        ),
        wire="live",
        generates=True,
        streams=True,
        transport="websocket",
    ),
    Row(
        Method.LIVE_CONSTRAINED,
        "live_tokens",
        "GET",
        ("/ws/google.ai.generativelanguage.{v}.GenerativeService.BidiGenerateContentConstrained",),
        transport="websocket",
    ),
    Row(
        Method.LIVE_MUSIC,
        "live_music",
        "GET",
        ("/ws/google.ai.generativelanguage.{v}.GenerativeService.BidiGenerateMusic",),
        transport="websocket",
    ),
    Row(Method.CREATE_AUTH_TOKEN, "auth_tokens", "POST", ("/{v}/auth_tokens", "/{v}/interactions/{id}/auth_tokens")),
    Row(Method.DELETE_AUTH_TOKEN, "auth_tokens", "DELETE", ("/{v}/interactions/{id}/auth_tokens/{token}",)),
    Row(Method.CREATE_CACHED_CONTENT, "caches", "POST", _caches(""), keeps=True),
    *_kept(
        "cache",
        "caches",
        Row(Method.LIST_CACHED_CONTENTS, "", "GET", _caches(""), query=_PAGES),
        Row(Method.GET_CACHED_CONTENT, "", "GET", _caches("/{id}")),
        Row(Method.UPDATE_CACHED_CONTENT, "", "PATCH", _caches("/{id}"), query=_MASK),
        Row(Method.DELETE_CACHED_CONTENT, "", "DELETE", _caches("/{id}")),
    ),
    Row(Method.UPLOAD_FILE, "files", "POST", ("/upload/{v}/files",), transport="upload", keeps=True),
    Row(Method.UPLOAD_CHUNK, "files", "POST", ("/upload/{v}/files/{id}",), transport="upload", keeps=True),
    *_kept(
        "file",
        "files",
        Row(Method.LIST_FILES, "", "GET", ("/{v}/files",), query=_PAGES),
        Row(Method.GET_FILE, "", "GET", ("/{v}/files/{id}",)),
        Row(Method.DELETE_FILE, "", "DELETE", ("/{v}/files/{id}",)),
    ),
    Row(
        Method.DOWNLOAD_FILE,
        "files",
        "GET",
        ("/{v}/files/{id}:download",),
        wire="batch_results",
        generates=True,
        media=True,
        kept="file",
    ),
    Row(Method.REGISTER_FILES, "registered_files", "POST", ("/{v}/files:register",)),
    Row(Method.CREATE_FILE_SEARCH_STORE, "file_search", "POST", ("/{v}/fileSearchStores",)),
    Row(Method.LIST_FILE_SEARCH_STORES, "file_search", "GET", ("/{v}/fileSearchStores",), query=_PAGES),
    Row(Method.GET_FILE_SEARCH_STORE, "file_search", "GET", ("/{v}/fileSearchStores/{id}",)),
    Row(Method.DELETE_FILE_SEARCH_STORE, "file_search", "DELETE", ("/{v}/fileSearchStores/{id}",), query=_FORCE),
    Row(
        Method.UPLOAD_TO_FILE_SEARCH_STORE,
        "file_search",
        "POST",
        ("/upload/{v}/fileSearchStores/{id}:uploadToFileSearchStore",),
        transport="bytes",
    ),
    Row(Method.IMPORT_FILE, "file_search", "POST", ("/{v}/fileSearchStores/{id}:importFile",)),
    Row(Method.LIST_DOCUMENTS, "file_search", "GET", ("/{v}/fileSearchStores/{id}/documents",), query=_PAGES),
    Row(Method.GET_DOCUMENT, "file_search", "GET", ("/{v}/fileSearchStores/{id}/documents/{document}",)),
    Row(
        Method.DELETE_DOCUMENT,
        "file_search",
        "DELETE",
        ("/{v}/fileSearchStores/{id}/documents/{document}",),
        query=_FORCE,
    ),
    Row(
        Method.GET_FILE_SEARCH_OPERATION,
        "file_search",
        "GET",
        (
            "/{v}/fileSearchStores/{id}/operations/{operation}",
            "/{v}/fileSearchStores/{id}/upload/operations/{operation}",
        ),
    ),
    Row(Method.DOWNLOAD_MEDIA, "file_search", "GET", ("/{v}/fileSearchStores/{id}/media/{media}",), media=True),
    Row(
        Method.BATCH_GENERATE,
        "batches",
        "POST",
        ("/{v}/models/{model}:batchGenerateContent",),
        wire="batch",
        keeps=True,
    ),
    Row(
        Method.BATCH_EMBED_LATER,
        "batches",
        "POST",
        ("/{v}/models/{model}:asyncBatchEmbedContent",),
        wire="batch",
        keeps=True,
    ),
    Row(Method.LIST_BATCHES, "batches", "GET", ("/{v}/batches",), bare=True, query=_PAGES, kept="batch"),
    Row(Method.GET_BATCH, "batches", "GET", ("/{v}/batches/{id}",), wire="batch", generates=True, kept="batch"),
    Row(Method.CANCEL_BATCH, "batches", "POST", ("/{v}/batches/{id}:cancel",), bare=True, kept="batch"),
    Row(
        Method.UPDATE_BATCH,
        "batch_updates",
        "PATCH",
        ("/{v}/batches/{id}:updateGenerateContentBatch", "/{v}/batches/{id}:updateEmbedContentBatch"),
        query=_MASK,
    ),
    Row(Method.DELETE_BATCH, "batches", "DELETE", ("/{v}/batches/{id}",), bare=True, kept="batch"),
    Row(Method.CREATE_TUNED_MODEL, "tuning", "POST", ("/{v}/tunedModels",)),
    Row(Method.LIST_TUNED_MODELS, "tuning", "GET", ("/{v}/tunedModels",), query=_PAGES),
    Row(Method.GET_TUNED_MODEL, "tuning", "GET", ("/{v}/tunedModels/{model}",)),
    Row(Method.UPDATE_MODEL, "tuning", "PATCH", ("/{v}/tunedModels/{model}", "/{v}/models/{model}"), query=_MASK),
    Row(Method.DELETE_MODEL, "tuning", "DELETE", ("/{v}/tunedModels/{model}", "/{v}/models/{model}")),
    Row(Method.GET_TUNING_OPERATION, "tuning", "GET", ("/{v}/tunedModels/{model}/operations/{id}",)),
    Row(Method.CREATE_TUNING_JOB, "tuning", "POST", ("/{v}/tuningJobs",)),
    Row(Method.LIST_TUNING_JOBS, "tuning", "GET", ("/{v}/tuningJobs",), query=_PAGES),
    Row(Method.GET_TUNING_JOB, "tuning", "GET", ("/{v}/tuningJobs/{id}",)),
    Row(Method.CANCEL_TUNING_JOB, "tuning", "POST", ("/{v}/tuningJobs/{id}:cancel",)),
    Row(Method.VALIDATE_TUNING_REWARD, "tuning", "POST", ("/{v}/tuningJobs:validateReinforcementTuningReward",)),
    Row(Method.CREATE_AGENT, "agents", "POST", ("/{v}/agents",)),
    Row(Method.LIST_AGENTS, "agents", "GET", ("/{v}/agents",), query=_PAGES),
    Row(Method.GET_AGENT, "agents", "GET", ("/{v}/agents/{id}",)),
    Row(Method.DELETE_AGENT, "agents", "DELETE", ("/{v}/agents/{id}",)),
    Row(Method.CREATE_TRIGGER, "triggers", "POST", ("/{v}/triggers",)),
    Row(Method.LIST_TRIGGERS, "triggers", "GET", ("/{v}/triggers",), query=_PAGES),
    Row(Method.GET_TRIGGER, "triggers", "GET", ("/{v}/triggers/{id}",)),
    Row(Method.UPDATE_TRIGGER, "triggers", "PATCH", ("/{v}/triggers/{id}",), query=_MASK),
    Row(Method.DELETE_TRIGGER, "triggers", "DELETE", ("/{v}/triggers/{id}",)),
    Row(Method.RUN_TRIGGER, "triggers", "POST", ("/{v}/triggers/{id}/executions",)),
    Row(Method.LIST_TRIGGER_EXECUTIONS, "triggers", "GET", ("/{v}/triggers/{id}/executions",), query=_PAGES),
    Row(Method.CREATE_ENVIRONMENT, "environments", "POST", ("/{v}/environments",)),
    Row(Method.LIST_ENVIRONMENTS, "environments", "GET", ("/{v}/environments",), query=_PAGES),
    Row(Method.GET_ENVIRONMENT, "environments", "GET", ("/{v}/environments/{id}",)),
    Row(Method.DELETE_ENVIRONMENT, "environments", "DELETE", ("/{v}/environments/{id}",)),
    Row(
        Method.WRITE_ENVIRONMENT_FILE,
        "environments",
        "PUT",
        ("/upload/{v}/environments/{id}/files/{file_path}",),
        transport="bytes",
    ),
    Row(Method.READ_ENVIRONMENT_FILE, "environments", "GET", ("/{v}/environments/{id}/files/{file_path}",), media=True),
    Row(Method.CREATE_CREDENTIAL, "credentials", "POST", ("/{v}/credentials",)),
    Row(Method.LIST_CREDENTIALS, "credentials", "GET", ("/{v}/credentials",), query=_PAGES),
    Row(Method.GET_CREDENTIAL, "credentials", "GET", ("/{v}/credentials/{id}",)),
    Row(Method.UPDATE_CREDENTIAL, "credentials", "PATCH", ("/{v}/credentials/{id}",), query=_MASK),
    Row(Method.DELETE_CREDENTIAL, "credentials", "DELETE", ("/{v}/credentials/{id}",)),
    Row(Method.CREATE_WEBHOOK, "webhooks", "POST", ("/{v}/webhooks",)),
    Row(Method.LIST_WEBHOOKS, "webhooks", "GET", ("/{v}/webhooks",), query=_PAGES),
    Row(Method.GET_WEBHOOK, "webhooks", "GET", ("/{v}/webhooks/{id}",)),
    Row(Method.UPDATE_WEBHOOK, "webhooks", "PATCH", ("/{v}/webhooks/{id}",), query=_MASK),
    Row(Method.DELETE_WEBHOOK, "webhooks", "DELETE", ("/{v}/webhooks/{id}",)),
    Row(Method.PING_WEBHOOK, "webhooks", "POST", ("/{v}/webhooks/{id}:ping",)),
    Row(Method.ROTATE_SIGNING_SECRET, "webhooks", "POST", ("/{v}/webhooks/{id}:rotateSigningSecret",)),
    Row(Method.CREATE_VOICE, "voices", "POST", ("/{v}/voices",)),
    Row(Method.LIST_VOICES, "voices", "GET", ("/{v}/voices",), query=_PAGES),
    Row(Method.GET_VOICE, "voices", "GET", ("/{v}/voices/{id}",)),
    Row(Method.DELETE_VOICE, "voices", "DELETE", ("/{v}/voices/{id}",)),
    Row(
        Method.OPENAI_CHAT,
        "openai",
        "POST",
        ("/{v}/openai/chat/completions", f"{_PLACE}/endpoints/{{endpoint}}/chat/completions"),
        wire="openai",
        generates=True,
        bearer=True,
    ),
    Row(Method.OPENAI_EMBED, "openai", "POST", ("/{v}/openai/embeddings",), wire="openai", bearer=True),
    Row(Method.OPENAI_LIST_MODELS, "openai", "GET", ("/{v}/openai/models",), wire="openai", bare=True, bearer=True),
    Row(
        Method.OPENAI_GET_MODEL,
        "openai",
        "GET",
        ("/{v}/openai/models/{model}", "/{v}/openai/models/models/{model}"),
        wire="openai",
        bare=True,
        bearer=True,
    ),
    Row(Method.OPENAI_IMAGES, "openai_other", "POST", ("/{v}/openai/images/generations",)),
    Row(Method.OPENAI_RESPONSES, "openai_other", "POST", ("/{v}/openai/responses",)),
    Row(Method.OPENAI_FILES, "openai_other", "POST", ("/{v}/openai/files",), transport="bytes"),
    Row(Method.OPENAI_BATCHES, "openai_other", "POST", ("/{v}/openai/batches",)),
    Row(
        Method.VERTEX_CREATE,
        "vertex_other",
        "POST",
        (
            *(f"{_PLACE}/{kind}" for kind in _VERTEX_KINDS),
            f"{_PLACE}/batchPredictionJobs/{{id}}:cancel",
            f"{_PLACE}/tuningJobs/{{id}}:cancel",
            f"{_PLACE}/tuningJobs:validateReinforcementTuningReward",
            *(f"{_PLACE}/reasoningEngines/{{id}}:{verb}" for verb in ("query", "streamQuery")),
            *(f"{_PLACE}/publishers/{{publisher}}/models/{{model}}:{verb}" for verb in _RAW),
        ),
    ),
    Row(
        Method.VERTEX_READ,
        "vertex_other",
        "GET",
        (
            *(f"{_PLACE}/{kind}" for kind in _VERTEX_KINDS),
            *(f"{_PLACE}/{kind}/{{id}}" for kind in (*_VERTEX_KINDS, "operations", "models", "endpoints")),
            f"{_PLACE}/models",
        ),
        query=_PAGES,
    ),
    Row(
        Method.VERTEX_UPDATE,
        "vertex_other",
        "PATCH",
        tuple(f"{_PLACE}/{kind}/{{id}}" for kind in (*_VERTEX_KINDS, "models")),
    ),
    Row(
        Method.VERTEX_DELETE,
        "vertex_other",
        "DELETE",
        tuple(f"{_PLACE}/{kind}/{{id}}" for kind in (*_VERTEX_KINDS, "models", "endpoints")),
    ),
    Row(Method.GENERATE_ANSWER, "legacy", "POST", ("/{v}/models/{model}:generateAnswer",)),
    Row(
        Method.GENERATE_TEXT,
        "legacy",
        "POST",
        ("/{v}/models/{model}:generateText", "/{v}/models/{model}:generateMessage"),
    ),
    Row(
        Method.RAW_PREDICT,
        "legacy",
        "POST",
        (
            "/{v}/models/{model}:rawPredict",
            "/{v}/models/{model}:streamRawPredict",
            "/{v}/models/{model}:serverStreamingPredict",
        ),
    ),
    Row(Method.QUERY_CORPUS, "legacy", "POST", ("/{v}/corpora/{id}:query",)),
)
ROWS: Final[Mapping[Method, Row]] = MappingProxyType({row.method: row for row in _ROWS})


def carries_nothing(door: str) -> bool:
    """Return whether a door carries no content of users."""
    return all(row.bare for row in _ROWS if row.door == door)


_NAME: Final = "[A-Za-z0-9][A-Za-z0-9._-]{0,127}"
_VERSION: Final = "v1beta1|v1beta|v1alpha|v1"
_ALPHABETS: Final[Mapping[str, str]] = {
    # It becomes part of a host name, so no other character is allowed.
    "location": "[a-z](?:[a-z0-9-]{0,38}[a-z0-9])?",
    "project": "[a-z0-9][a-z0-9:.-]{0,59}",
    "id": "[A-Za-z0-9_-][A-Za-z0-9._-]{0,511}",
    "file_path": "[A-Za-z0-9_-][A-Za-z0-9._-]{0,127}(?:/[A-Za-z0-9_-][A-Za-z0-9._-]{0,127}){0,15}",
}
"""The form of names in paths, which excludes ``%``, ``..`` and ``@``."""

_STEP: Final = re.compile(r"(/?)\{([a-z_]+)\}")
_FIRST: Final = re.compile(rf"(?:/(?:{_VERSION})(?=/))?/([A-Za-z0-9_$.-]+)")


def _pattern(path: str) -> re.Pattern[str]:
    def alphabet(match: re.Match[str]) -> str:
        slash, name = match.groups()
        if name == "v":
            return f"(?:/(?P<v>{_VERSION}))?" if slash else f"(?P<v>{_VERSION})"
        return f"{slash}(?P<{name}>{_ALPHABETS.get(name, _NAME)})"

    pieces = re.split(r"(/?\{[a-z_]+\})", path)
    return re.compile("".join(_STEP.sub(alphabet, piece) if "{" in piece else re.escape(piece) for piece in pieces))


@dataclass(frozen=True, slots=True)
class Match:
    """A path of a row. ``names`` holds the values of its braces, with the version only if the client gave it."""

    row: Row
    path: str
    names: Mapping[str, str]

    @property
    def host(self) -> Host:
        """Return which of Google's APIs the path is of."""
        return "vertex" if self.path.startswith(_VERTEX) else "gemini"

    def upstream_path(self, version: str) -> str:
        """Return the path with ``version``, made only of the table and the names."""
        return self.path.format(**{**self.names, "v": version})


@cache
def _patterns(first: str) -> tuple[tuple[Row, str, re.Pattern[str]], ...]:
    """Return the paths whose first step after the version begins with the word ``first``."""
    return tuple((row, path, _pattern(path)) for row, path in _by_first_word().get(first, ()))


@cache
def _by_first_word() -> Mapping[str, list[tuple[Row, str]]]:
    found: dict[str, list[tuple[Row, str]]] = {}
    for row in _ROWS:
        for path in row.paths:
            word = path.removeprefix("/{v}").split("/")[1].partition(":")[0]
            found.setdefault(word, []).append((row, path))
    return found


def matches(path: str) -> Iterator[Match]:
    """Yield the rows with this path, which differ in their HTTP method. The path has no prefix of the proxy.

    The raw path is matched: nothing is percent-decoded, so what was matched is what goes upstream.
    """
    first = _FIRST.match(path)
    # Only words of the table are cached: the number of others has no bound.
    known = first is not None and first[1] in _by_first_word()
    for row, shape, pattern in _patterns(first[1]) if first and known else ():
        if match := pattern.fullmatch(path):
            yield Match(row, shape, {name: value for name, value in match.groupdict().items() if value is not None})
