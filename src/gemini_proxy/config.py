"""The configuration: one TOML file, environment variables over it, secrets from systemd credentials.

This is the only module that reads files and the environment; everything else takes values.
"""

import difflib
import glob
import ipaddress
import os
import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError, field_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

ENVIRONMENT_PREFIX = "GEMINI_PROXY_"
_DATABASE = re.compile(r"sqlite:///.+")


class ConfigError(Exception):
    """The configuration cannot be used; each line names the key, the value and what was expected."""


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=False)


class Server(_Section):
    """Where and how the proxy listens. Addresses are ``host:port`` or ``unix:/path``; times in seconds."""

    listen: tuple[str, ...] = ("127.0.0.1:8005",)
    loop: Literal["asyncio", "uvloop"] = "asyncio"
    max_request_bytes: Annotated[int, Field(ge=1024)] = 104_857_600
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


class Upstream(_Section):
    """The Gemini API. ``api_key`` is sent for clients that bring none; times in seconds."""

    base_url: str = "https://generativelanguage.googleapis.com"
    connect_timeout: Annotated[float, Field(gt=0)] = 10.0
    read_timeout: Annotated[float, Field(gt=0)] = 60.0
    max_answer_bytes: Annotated[int, Field(ge=1024)] = 104_857_600
    api_key: SecretStr | None = None
    forward_headers: tuple[str, ...] = ()

    @field_validator("base_url")
    @classmethod
    def _url(cls, value: str) -> str:
        parts = urlsplit(value)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
            raise ValueError('a URL such as "https://generativelanguage.googleapis.com", without query')
        if parts.username or parts.password:
            raise ValueError("a URL without user name and password; the key belongs in upstream.api_key")
        if parts.scheme == "http" and not _is_loopback(parts.hostname):
            raise ValueError("https, unless the host is this machine")
        return value.rstrip("/")

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


class Guardrails(_Section):
    """What is checked, when, and what happens where a check is impossible. ``timeout`` in seconds a check."""

    engine: Literal["native", "off"] = "native"
    policies: tuple[str, ...] = ()
    log_policies: tuple[str, ...] = ()
    header_policies: Literal["add", "replace", "off"] = "add"
    request_check: Literal["overlap", "before"] = "overlap"
    stream_check: Literal["final", "window", "hold"] = "final"
    window_overlap: Annotated[int, Field(ge=0, le=65_536)] = 256
    unavailable: Literal["block", "allow"] = "block"
    timeout: Annotated[float, Field(gt=0)] = 5.0
    thoughts: Literal["check", "skip"] = "check"
    unseen_content: Literal["allow", "block"] = "allow"
    parameters: Mapping[str, Any] = Field(default_factory=dict)


class Refusals(_Section):
    """How a refusal looks; the defaults are those that every client surfaces."""

    prefix: str = "[Invariant]"
    feedback: Literal["compat", "none", "native"] = "compat"
    before_stream: Literal["event", "http_400"] = "event"
    error_status: Literal["FAILED_PRECONDITION", "INVARIANT_GUARDRAILS_VIOLATION"] = "FAILED_PRECONDITION"


class Traces(_Section):
    """Where exchanges are recorded. With ``required`` an exchange that cannot be recorded is not answered."""

    database: str = "sqlite:///gemini-proxy.db"
    retention_days: Annotated[int, Field(ge=0)] = 30
    required: bool = False

    @field_validator("database")
    @classmethod
    def _url(cls, value: str) -> str:
        if not _DATABASE.fullmatch(value):
            raise ValueError('"sqlite:///FILE"')
        return value


class Access(_Section):
    """Who may use the proxy. ``open`` is for this machine only: the server will not start on another address."""

    mode: Literal["open"] = "open"


class Config(BaseSettings):
    """Every setting. Frozen; secrets do not appear in its repr."""

    model_config = SettingsConfigDict(
        env_prefix=ENVIRONMENT_PREFIX, env_nested_delimiter="__", extra="forbid", frozen=True, env_ignore_empty=True
    )

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """The environment wins over the file, whose values come in as arguments."""
        return env_settings, init_settings

    server: Server = Server()
    upstream: Upstream = Upstream()
    guardrails: Guardrails = Guardrails()
    refusals: Refusals = Refusals()
    traces: Traces = Traces()
    access: Access = Access()


@dataclass(frozen=True, slots=True)
class ListenAddress:
    """One address to listen on: a TCP host and port, or the path of a unix socket."""

    host: str = ""
    port: int = 0
    path: str = ""

    @property
    def local(self) -> bool:
        """True where only this machine can connect."""
        return bool(self.path) or _is_loopback(self.host)

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"unix:{self.path}" if self.path else f"{host}:{self.port}"


def listen_address(text: str) -> ListenAddress:
    """Read ``host:port``, ``[v6]:port`` or ``unix:/path``. Raises ValueError saying what was expected."""
    if text.startswith("unix:") and text.removeprefix("unix:").startswith("/"):
        return ListenAddress(path=text.removeprefix("unix:"))
    host, _, port = text.rpartition(":")
    if not host or not port.isdecimal() or int(port) > 65535:
        raise ValueError('"host:port" or "unix:/path"')
    return ListenAddress(host=host.strip("[]"), port=int(port))


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


@dataclass(frozen=True, slots=True)
class ServiceManager:
    """What systemd said at start: where to send notifications, and the watchdog's period in seconds."""

    notify_socket: str | None
    watchdog_seconds: float | None


def service_manager() -> ServiceManager:
    """Read $NOTIFY_SOCKET and $WATCHDOG_USEC."""
    usec = os.environ.get("WATCHDOG_USEC", "")
    return ServiceManager(os.environ.get("NOTIFY_SOCKET"), int(usec) / 1e6 if usec.isdecimal() else None)


@dataclass(frozen=True, slots=True)
class PolicyFile:
    """A policy as read: its path as the configuration's user knows it, and its text."""

    path: str
    text: str


def load_config(file: Path | None = None) -> Config:
    """The configuration from ``file`` (TOML; none means defaults), the environment and systemd's credentials.

    Raises ConfigError with one line a fault.
    """
    values = _read_toml(file) if file else {}
    _check_environment(os.environ)
    credential = _credential("gemini-api-key")
    try:
        config = Config(**values)
    except ValidationError as error:
        raise ConfigError("\n".join(_explain(error, str(file) if file else "configuration"))) from None
    except ValueError as error:
        raise ConfigError(f"environment: {type(error).__name__}: a variable could not be read as JSON") from None
    if credential:
        upstream = config.upstream.model_copy(update={"api_key": SecretStr(credential)})
        config = config.model_copy(update={"upstream": upstream})
    _check_access(config)
    return config


def read_policies(patterns: Sequence[str], folder: Path) -> tuple[PolicyFile, ...]:
    """The files that ``patterns`` name, relative to ``folder``, each once and in order.

    Raises ConfigError for a pattern that names no file: a policy that is not there would silently check nothing.
    """
    found: dict[str, PolicyFile] = {}
    for pattern in patterns:
        paths = sorted(glob.glob(str(folder / pattern), recursive=True))
        if not paths:
            raise ConfigError(f'guardrails.policies: no file matches "{pattern}" in {folder}')
        for path in paths:
            found[path] = PolicyFile(os.path.relpath(path, folder), _read_text(Path(path)))
    return tuple(found.values())


def _read_text(path: Path) -> str:
    try:
        return path.read_bytes().decode()
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{path}: not UTF-8") from None


def _read_toml(file: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(_read_text(file))
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{file}: {error}") from None


def _credential(name: str) -> str | None:
    """A secret that systemd placed for this unit (LoadCredential=), without its trailing newline."""
    folder = os.environ.get("CREDENTIALS_DIRECTORY")
    path = Path(folder) / name if folder else None
    return _read_text(path).strip() if path and path.exists() else None


def _check_environment(environ: Mapping[str, str]) -> None:
    """Refuse variables under our prefix that name no section: a typing error would silently change nothing."""
    sections = set(Config.model_fields)
    for name in environ:
        if not name.upper().startswith(ENVIRONMENT_PREFIX) or name.upper() == f"{ENVIRONMENT_PREFIX}CONFIG":
            continue
        section = name[len(ENVIRONMENT_PREFIX) :].lower().partition("__")[0]
        if section not in sections:
            raise ConfigError(f"environment: {name}: unknown section{_nearest(section, sections)}")


def _check_access(config: Config) -> None:
    for address in map(listen_address, config.server.listen):
        if not address.local:
            raise ConfigError(
                f'server.listen: "{address}" is reachable from other machines, which access.mode = "open" does not '
                'allow; expected a loopback address or "unix:/path" behind a server such as nginx'
            )


def _explain(error: ValidationError, source: str) -> Iterator[str]:
    for fault in error.errors(include_url=False):
        path = [str(step) for step in fault["loc"]]
        key = ".".join(path)
        if fault["type"] == "extra_forbidden":
            yield f"{source}: {key}: unknown key{_nearest(path[-1], _known_keys(path[:-1]))}"
        else:
            value = "***" if path[-1].endswith("api_key") else repr(fault["input"])
            expected = fault["msg"].removeprefix("Value error, ").removeprefix("Input should be ")
            yield f"{source}: {key}: {value[:200]}: expected {expected}"


def _known_keys(path: Sequence[str]) -> set[str]:
    model: Any = Config
    for step in path:
        model = model.model_fields[step].annotation
    return set(model.model_fields)


def _nearest(name: str, known: set[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1)
    return f' (did you mean "{close[0]}"?)' if close else f" (known are {', '.join(sorted(known))})"
