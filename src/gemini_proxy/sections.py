"""Define the sections of the configuration: the allowed values of each key, and its default."""

import base64
import ipaddress
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ByteSize,
    ConfigDict,
    Field,
    SecretStr,
    ValidationInfo,
    create_model,
    field_validator,
)

from gemini_proxy.gemini.doors import DOORS, Duty, carries_nothing
from gemini_proxy.http.listen_addresses import UNIX, is_loopback, listen_address
from gemini_proxy.traces.alerts.rules import AlertRule, Format, Kind
from gemini_proxy.traces.value_keys import ValueKeys, read_value_keys

_POSTGRES = re.compile(r"postgresql\+asyncpg://.+")
_DATABASE = re.compile(r"sqlite:///(?!:memory:).+|postgresql\+asyncpg://.+")
SMALLEST_DATABASE = 10_000_000
"""Bytes that ``traces.max_size`` is at least: what is in a database beside its traces takes some."""
_URL = re.compile(r"[\x21-\x7e]+")
_HOST = re.compile(r"[A-Za-z0-9._-]+|[0-9A-Fa-f:.]+")
_SECRET = re.compile(r"[\x21-\x7e]+")


def sendable(secret: SecretStr) -> SecretStr:
    """Return a key as it is if a header can carry it. Raises ValueError saying what was expected."""
    if not _SECRET.fullmatch(secret.get_secret_value()):
        raise ValueError("a key: visible ASCII characters, without spaces or line breaks")
    return secret


Key = Annotated[SecretStr, AfterValidator(sendable)]


def valid_value_keys(secret: SecretStr) -> SecretStr:
    """Return keys that encrypt masked values as they are. Raises ValueError saying what was expected."""
    read_value_keys(secret.get_secret_value())
    return secret


def service_url(value: str) -> str:
    """Return a service's base URL without its last slash. Raises ValueError saying what was expected."""
    try:
        parts = urlsplit(value)
        host, port = parts.hostname or "", parts.port
    except ValueError:
        parts, host, port = urlsplit(""), "", None
    if "@" in value:
        raise ValueError("a URL without user name and password; the key belongs in api_key")
    readable = _URL.fullmatch(value) and _HOST.fullmatch(host) and port != 0
    if parts.scheme not in ("http", "https") or not readable or "?" in value or "#" in value:
        raise ValueError('a URL such as "https://explorer.example.com", without query')
    if parts.scheme == "http" and not is_loopback(host):
        raise ValueError("https, unless the host is this machine")
    return value.rstrip("/")


ServiceUrl = Annotated[str, AfterValidator(service_url)]


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=False, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _no_truth_for_a_number(cls, value: object, info: ValidationInfo) -> object:
        kind = cls.model_fields[info.field_name or ""].annotation
        if isinstance(value, bool) and kind in (int, float):
            raise ValueError("a number")
        return value


MAX_PROCESSES = 64
"""Each takes about 80 MB, and connections of its own to the database."""


def _process_count(value: object) -> object:
    """Read a whole number, also as text (from the environment), or ``auto``. Raises ValueError with what it expects."""
    if isinstance(value, str) and value.isdecimal():
        value = int(value)
    if value == "auto" or (type(value) is int and 1 <= value <= MAX_PROCESSES):
        return value
    raise ValueError(f'a number from 1 to {MAX_PROCESSES}, or "auto"')


class Server(Section):
    """The proxy's listeners. Addresses are ``host:port`` or ``unix:/path``; times are in seconds.

    ``processes`` is the number of processes; ``auto`` means one for each processor that this process may use.
    """

    listen: tuple[str, ...] = ("127.0.0.1:8005",)
    processes: Annotated[int | Literal["auto"], BeforeValidator(_process_count)] = 1
    loop: Literal["asyncio", "uvloop"] = "asyncio"
    max_request_bytes: Annotated[int, Field(ge=1024)] = 104_857_600
    max_held_bytes: Annotated[int, Field(ge=0)] = 268_435_456
    max_exchanges: Annotated[int, Field(ge=1)] = 4096
    request_timeout: Annotated[float, Field(gt=0)] = 60.0
    shutdown_grace: Annotated[float, Field(ge=0)] = 30.0

    @field_validator("listen")
    @classmethod
    def _addresses(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if not value:
            raise ValueError("at least one address")
        for address in value:
            listen_address(address)
        return value


class Upstream(Section):
    """The Gemini API, and Vertex AI. ``api_key`` is sent to the former for clients that bring none; times in seconds.

    ``vertex = "google"`` sends each call to the host of the location in its path.
    """

    base_url: ServiceUrl = "https://generativelanguage.googleapis.com"
    vertex: Literal["google"] | ServiceUrl = "google"
    connect_timeout: Annotated[float, Field(gt=0)] = 10.0
    read_timeout: Annotated[float, Field(gt=0)] = 60.0
    max_answer_bytes: Annotated[int, Field(ge=1024)] = 104_857_600
    api_key: Key | None = None
    forward_headers: tuple[str, ...] = ()

    @field_validator("forward_headers")
    @classmethod
    def _headers(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for name in value:
            folded = name.lower()
            if not re.fullmatch(r"[A-Za-z0-9-]+", name) or "invariant" in folded or folded in _NEVER_FORWARDED:
                raise ValueError(
                    "names of headers that may go upstream; not credentials, cookies or connection headers"
                )
        return tuple(name.lower() for name in value)


_NEVER_FORWARDED = frozenset(
    "authorization cookie connection host content-length content-encoding transfer-encoding te trailer upgrade "
    "keep-alive proxy-authorization proxy-connection accept-encoding forwarded x-goog-api-key".split()
)


class Remote(Section):
    """A server that checks for this one (``engine = "remote"``). Without ``api_key`` the clients' own keys go there."""

    url: ServiceUrl | None = None
    api_key: Key | None = None


class Judge(Section):
    """A Gemini model that policies ask. ``timeout`` is in seconds, for all questions asked together.

    ``api_key`` pays for it. Without one the client's own Gemini key does, which goes only to the upstream: so a ``url``
    needs its own key.
    """

    model: Annotated[str | None, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")] = None
    url: ServiceUrl | None = None
    api_key: Key | None = None
    timeout: Annotated[float, Field(gt=0)] = 10.0
    questions_per_minute: Annotated[int, Field(ge=0)] = 600
    questions_per_day: Annotated[int, Field(ge=0)] = 20_000


class ModelArmor(Section):
    """Google's Model Armor, which policies ask: the filters of ``template``. ``timeout`` as for ``Judge``.

    ``token`` is an OAuth token. Without one, that of this machine's service account is used.
    """

    template: Annotated[str | None, Field(pattern=r"^projects/[\w.:-]+/locations/[a-z0-9-]+/templates/[\w-]+$")] = None
    url: ServiceUrl | None = None
    token: Key | None = None
    timeout: Annotated[float, Field(gt=0)] = 5.0
    questions_per_minute: Annotated[int, Field(ge=0)] = 600
    questions_per_day: Annotated[int, Field(ge=0)] = 20_000


class Classifier(Section):
    """A model in ONNX form that policies ask about injections: its folder, and the score from which a text is one.

    ``timeout`` is in seconds, for the texts of a check, which are scored together.
    """

    path: Path | None = None
    threshold: Annotated[float, Field(gt=0, le=1)] = 0.99
    timeout: Annotated[float, Field(gt=0)] = 5.0


class Presidio(Section):
    """Presidio, which policies ask for names, places and all else that it finds from the score ``threshold`` on.

    ``model`` is spaCy's: the name of an installed package, or a folder. It reads ``language``. ``timeout`` is in
    seconds, for the texts of a check.
    """

    model: Annotated[str, Field(min_length=1)] = "en_core_web_sm"
    language: Annotated[str, Field(pattern=r"^[a-z]{2,3}$")] = "en"
    threshold: Annotated[float, Field(ge=0, le=1)] = 0.5
    timeout: Annotated[float, Field(gt=0)] = 10.0


class Semgrep(Section):
    """The program semgrep, which policies ask about code. ``timeout`` is in seconds, for all the code of a check."""

    timeout: Annotated[float, Field(gt=0)] = 20.0


class Guardrails(Section):
    """What is checked, when, and what happens if a check is impossible. ``timeout``: seconds a check."""

    engine: Literal["native", "remote", "off"] = "native"
    policies: tuple[str, ...] = ()
    ask_policies: tuple[str, ...] = ()
    mask_policies: tuple[str, ...] = ()
    log_policies: tuple[str, ...] = ()
    header_policies: Literal["add", "replace", "off"] = "add"
    request_check: Literal["overlap", "before"] = "overlap"
    stream_check: Literal["final", "window", "hold"] = "final"
    window_overlap: Annotated[int, Field(ge=0, le=65_536)] = 256
    unavailable: Literal["block", "allow"] = "block"
    timeout: Annotated[float, Field(gt=0)] = 5.0
    thoughts: Literal["check", "skip"] = "check"
    restore: Literal["all", "text", "off"] = "all"
    history: Literal["mask", "drop", "refuse"] = "mask"
    ask_timeout: Annotated[float, Field(gt=0, le=86_400)] = 120.0
    mask_key: SecretStr | None = None
    value_keys: Annotated[SecretStr, AfterValidator(valid_value_keys)] | None = None
    value_days: Annotated[int, Field(ge=1, le=3_650)] = 30
    unseen_content: Literal["allow", "block"] = "allow"
    outbound_fields: Literal["refuse", "allow"] = "refuse"
    agents: Literal["refuse", "allow"] = "refuse"
    environments: Literal["refuse", "allow"] = "refuse"
    parameters: Mapping[str, Any] = Field(default_factory=dict)
    remote: Remote = Remote()
    judge: Judge = Judge()
    model_armor: ModelArmor = ModelArmor()
    classifier: Classifier = Classifier()
    presidio: Presidio = Presidio()
    semgrep: Semgrep = Semgrep()

    @field_validator("parameters")
    @classmethod
    def _about_tools(cls, value: Mapping[str, Any]) -> Mapping[str, Any]:
        # This imports the language, which a healthcheck does not need.
        from gemini_proxy.policy import readable_parameters, readable_pins

        return readable_pins(readable_parameters(value))

    @property
    def kept_values(self) -> str:
        """Say in one sentence whether masked values outlive their exchange."""
        if self.restore == "off":
            return 'guardrails.restore = "off": masked values are not kept, and placeholders are not replaced'
        if self.value_keys is None:
            return "guardrails.value_keys is not set: masked values are kept only for their exchange"
        return f"masked values are kept, encrypted, for {self.value_days} days"


def value_keys(guardrails: Guardrails) -> ValueKeys | None:
    """Return what encrypts masked values; None where they are not kept."""
    if guardrails.value_keys is None or guardrails.restore == "off":
        return None
    return ValueKeys(read_value_keys(guardrails.value_keys.get_secret_value()))


class Files(Section):
    """Uploads of files, which wait in ``folder`` until they are checked; by default it is that of temporary files.

    ``upload_timeout`` is in seconds, for an upload that its client does not continue.
    """

    folder: Path | None = None
    max_bytes: Annotated[int, Field(ge=1024)] = 104_857_600
    max_text_bytes: Annotated[int, Field(ge=1024)] = 33_554_432
    max_spooled_bytes: Annotated[int, Field(ge=1024)] = 1_073_741_824
    upload_timeout: Annotated[float, Field(gt=0)] = 600.0


BeforeStream = Literal["auto", "event", "http_400"]


class DoorDuties(Section):
    """The treatment of each door of the API; the fields are those of the table of doors, with their defaults."""

    @property
    def duties(self) -> Mapping[str, Duty]:
        """Return the treatment by door."""
        return {name: Duty(getattr(self, name)) for name in DOORS}

    @property
    def unchecked(self) -> tuple[str, ...]:
        """Return a sentence for each door that is open and unguarded."""
        return tuple(
            f'doors.{name} = "pass": {DOORS[name].about}: unchecked'
            for name, duty in self.duties.items()
            if duty is Duty.PASS and not carries_nothing(name)
        )


if TYPE_CHECKING:
    Doors = DoorDuties
else:
    Doors = create_model(
        "Doors",
        __base__=DoorDuties,
        **{door.name: (Literal[tuple(map(str, door.duties))], str(door.default)) for door in DOORS.values()},
    )


class Refusals(Section):
    """The form of a refusal; every client shows the default form.

    ``before_stream`` applies before the first byte of a stream: ``auto`` refuses with an event, or by status if the
    client asked for structured output.
    """

    prefix: str = "[Invariant]"
    feedback: Literal["compat", "none", "native"] = "compat"
    before_stream: BeforeStream = "auto"
    error_status: Literal["FAILED_PRECONDITION", "INVARIANT_GUARDRAILS_VIOLATION"] = "FAILED_PRECONDITION"


class Traces(Section):
    """The recording of exchanges. With ``required``, an exchange that cannot be recorded is refused.

    With ``deferred`` a response does not wait for its trace, which is written right after it. ``notify_database`` is
    the same database without a pooler, ``read_database`` a replica of it.
    """

    database: Annotated[str, Field(repr=False)] = "sqlite:///gemini-proxy.db"
    notify_database: Annotated[str | None, Field(repr=False)] = None
    read_database: Annotated[str | None, Field(repr=False)] = None
    retention_days: Annotated[int, Field(ge=0)] = 30
    max_size: ByteSize = ByteSize(0)
    required: bool = False
    daily_seals: bool = True
    durability: Literal["commit", "deferred"] = "commit"

    @field_validator("database")
    @classmethod
    def _url(cls, value: str) -> str:
        if not _DATABASE.fullmatch(value):
            raise ValueError('"sqlite:///FILE" or "postgresql+asyncpg://USER@HOST/DATABASE"')
        return value

    @field_validator("max_size")
    @classmethod
    def _max_size(cls, value: ByteSize) -> ByteSize:
        if 0 < value < SMALLEST_DATABASE:
            raise ValueError('0, or at least "10 MB"')
        return value

    @field_validator("durability")
    @classmethod
    def _durability(cls, value: str, info: ValidationInfo) -> str:
        if value == "deferred" and info.data.get("required"):
            raise ValueError(
                '"commit", because traces.required is true and a response that has left cannot be withdrawn'
            )
        return value

    @field_validator("notify_database", "read_database")
    @classmethod
    def _postgres_url(cls, value: str | None) -> str | None:
        if value is not None and not _POSTGRES.fullmatch(value):
            raise ValueError('"postgresql+asyncpg://USER@HOST/DATABASE"')
        return value

    @field_validator("read_database")
    @classmethod
    def _replica(cls, value: str | None, info: ValidationInfo) -> str | None:
        if value is not None and info.data.get("database", "").startswith("sqlite"):
            raise ValueError("none with SQLite: a replica is of a PostgreSQL database")
        return value


class Push(Section):
    """An Explorer to which every trace is sent as well. ``max_queue`` traces wait for it at most, the newest."""

    url: ServiceUrl | None = None
    api_key: Key | None = None
    max_queue: Annotated[int, Field(ge=1)] = 100_000


class Explorer(Section):
    """The pages and the HTTP API over the traces. ``hosts`` are names, beside this machine's own, they answer to.

    ``public_url`` is the address of the pages for browsers, for links in alerts.
    """

    enabled: bool = True
    hosts: tuple[str, ...] = ()
    public_url: ServiceUrl | None = None
    push: Push = Push()

    @field_validator("hosts")
    @classmethod
    def _hosts(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for host in value:
            if not re.fullmatch(r"[A-Za-z0-9.-]+|\[[0-9A-Fa-f:.]+\]", host):
                raise ValueError('host names such as "gemini-proxy.example.com", without port')
        return tuple(host.lower() for host in value)


def valid_webhook_url(secret: SecretStr) -> SecretStr:
    """Return a URL to post to as it is: all of it is secret. Raises ValueError saying what was expected."""
    value = secret.get_secret_value()
    service_url(value.partition("?")[0])
    if not _URL.fullmatch(value) or "#" in value:
        raise ValueError('a URL such as "https://hooks.example.com/T0/B0", without fragment')
    return secret


def valid_signing_secret(secret: SecretStr) -> SecretStr:
    """Return a secret of Standard Webhooks as it is. Raises ValueError saying what was expected."""
    try:
        key = base64.b64decode(secret.get_secret_value().removeprefix("whsec_"), validate=True)
    except ValueError:
        key = b""
    if not 24 <= len(key) <= 64:
        raise ValueError('"whsec_" and the base64 of 24 to 64 random bytes')
    return secret


class Alert(Section):
    """The events that are sent to a webhook. Times are in seconds.

    A message is sent when ``threshold`` of what it is ``on`` have come within ``window``, and at most one in
    ``silence`` for the same guardrail, status or limit. ``url`` and ``signing_secret`` may come as the credentials
    ``alert-NAME-url`` and ``alert-NAME-secret``.
    """

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]{0,39}$")]
    on: Annotated[tuple[Kind, ...], Field(min_length=1)]
    url: Annotated[SecretStr, AfterValidator(valid_webhook_url)] | None = None
    format: Format = "json"
    signing_secret: Annotated[SecretStr, AfterValidator(valid_signing_secret)] | None = None
    guardrails: tuple[str, ...] = ()
    threshold: Annotated[int, Field(ge=1, le=1_000_000)] = 1
    window: Annotated[float, Field(ge=1, le=86_400)] = 300.0
    silence: Annotated[float, Field(ge=1, le=86_400)] = 300.0


def alert_rule(alert: Alert) -> AlertRule:
    """Return the rule of an alert. Its URL must be known by then."""
    assert alert.url is not None, "check_secrets guarantees it"
    secret = alert.signing_secret
    return AlertRule(
        name=alert.name,
        on=frozenset(alert.on),
        url=alert.url.get_secret_value(),
        format=alert.format,
        signing_secret=None if secret is None else base64.b64decode(secret.get_secret_value().removeprefix("whsec_")),
        guardrails=frozenset(alert.guardrails),
        threshold=alert.threshold,
        window=alert.window,
        silence=alert.silence,
    )


Limit = Annotated[int, Field(ge=0)]


class Price(Section):
    """US dollars for a million tokens of a model; ``cached`` is for those that a cache holds, None as for others."""

    input: Annotated[float, Field(ge=0)]
    output: Annotated[float, Field(ge=0)]
    cached: Annotated[float, Field(ge=0)] | None = None


class Limits(Section):
    """The limits of one client; 0 means no limit. A client is a key that is known to be valid, else an address.

    ``unproven`` limits requests with Gemini keys that the upstream has not accepted yet, for all of an address
    together. Limits on tokens are for a client and a dataset; if they exceed a ``soft`` limit, the log says so and they
    continue.
    """

    unfinished_connections: Limit = 512
    exchanges_at_once: Limit = 1024
    requests_per_minute: Limit = 120_000
    bytes_per_minute: Limit = 8_589_934_592
    unproven_requests_per_minute: Limit = 1200
    unproven_bytes_per_minute: Limit = 33_554_432
    input_tokens_per_day: Limit = 0
    output_tokens_per_day: Limit = 0
    soft_input_tokens_per_day: Limit = 0
    soft_output_tokens_per_day: Limit = 0

    @property
    def bounds_tokens(self) -> bool:
        """Return whether any limit is one of tokens."""
        return (
            self.input_tokens_per_day > 0
            or self.output_tokens_per_day > 0
            or self.soft_input_tokens_per_day > 0
            or self.soft_output_tokens_per_day > 0
        )


class Live(Section):
    """Sessions of the Live API. Sizes are in bytes, ``idle_timeout`` in seconds without a frame from either side.

    ``max_sessions`` limits the sessions of a process at a time. ``max_session_bytes`` bounds the bytes kept of one: its
    conversation, and frames that wait for a verdict. ``transcription`` adds a request for the text of speech to each
    setup.
    """

    max_sessions: Annotated[int, Field(ge=0)] = 1000
    max_frame_bytes: Annotated[int, Field(ge=1024)] = 4_194_304
    max_session_bytes: Annotated[int, Field(ge=65_536)] = 16_777_216
    idle_timeout: Annotated[float, Field(gt=0)] = 600.0
    transcription: Literal["as_asked", "add"] = "as_asked"


class Access(Section):
    """Settings for access to the proxy.

    ``open`` is for this machine only: the server will not start on another address. ``keys`` accepts the keys that
    ``gemini-proxy keys add`` made. ``trusted_proxies`` are the proxies whose ``X-Forwarded-For`` is believed, and
    through which requests may come with open access.
    """

    mode: Literal["open", "keys"] = "open"
    trusted_proxies: tuple[str, ...] = ()

    @field_validator("trusted_proxies")
    @classmethod
    def _proxies(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for name in value:
            if name != UNIX and not _is_network(name):
                raise ValueError('addresses and networks such as "10.0.0.1" and "10.0.0.0/8", or "unix"')
        return value

    @property
    def meaning(self) -> str:
        """Return one sentence that says who may use the server in this mode."""
        if self.mode == "keys":
            return 'access.mode = "keys": strangers need a key of "gemini-proxy keys add"'
        if self.trusted_proxies:
            proxies = ", ".join(self.trusted_proxies)
            return f'access.mode = "open": everyone on this machine may use it, and everyone who reaches {proxies}'
        return 'access.mode = "open": everyone on this machine may use it; requests through a proxy are refused'


class Telemetry(Section):
    """OpenTelemetry by OTLP over HTTP, to ``endpoint`` or where the standard environment variables say.

    ``content`` also sends the texts of conversations.
    """

    enabled: bool = False
    endpoint: ServiceUrl | None = None
    content: bool = False


class Logs(Section):
    """Log lines on standard error. ``auto`` is text where that is a terminal, and JSON elsewhere."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    format: Literal["auto", "text", "json"] = "auto"


def _is_network(text: str) -> bool:
    try:
        ipaddress.ip_network(text)
    except ValueError:
        return False
    return True
