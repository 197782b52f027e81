"""Read the configuration: one TOML file, environment variables over it, secrets from systemd credentials.

This is the only module that reads files and the environment; everything else takes values.
"""

import difflib
import glob
import hashlib
import importlib.util
import json
import os
import re
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeVar, get_args, get_origin

from pydantic import BaseModel, Field, SecretStr, ValidationError, field_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from gemini_proxy.http.listen_addresses import listen_address
from gemini_proxy.sections import (
    Access,
    Alert,
    Doors,
    Explorer,
    Files,
    Guardrails,
    Limits,
    Live,
    Logs,
    Price,
    Refusals,
    Server,
    Telemetry,
    Traces,
    Upstream,
    sendable,
    valid_signing_secret,
    valid_value_keys,
    valid_webhook_url,
)
from gemini_proxy.traces.redact import redact

ENVIRONMENT_PREFIX = "GEMINI_PROXY_"
_CREDENTIALS = {
    "gemini-api-key": ("upstream", "api_key"),
    "guardrails-api-key": ("guardrails", "remote", "api_key"),
    "judge-api-key": ("guardrails", "judge", "api_key"),
    "model-armor-token": ("guardrails", "model_armor", "token"),
    "mask-key": ("guardrails", "mask_key"),
    "value-keys": ("guardrails", "value_keys"),
    "explorer-api-key": ("explorer", "push", "api_key"),
}
MAX_ALERTS: Final = 20
"""Each event is looked at for every one of them."""
_FIRST_PASSED: Final = 3
"""The descriptor of the first socket that systemd passes; the others follow it."""
_TO_ONE_PROCESS: Final = ("NOTIFY_SOCKET", "WATCHDOG_", "LISTEN_")
_Model = TypeVar("_Model", bound=BaseModel)
_LONGEST_VALUE: Final = 200
"""Characters of a wrong value that are shown."""
# TOML's names for types, by the beginning of pydantic's name for the fault.
_EXPECTED_KINDS: Final = {
    "tuple_type": "a list",
    "model_": "a table",
    "dict_type": "a table",
    "mapping_type": "a table",
    "bool_": "true or false",
    "int_": "an integer",
    "float_": "a number",
    "string_type": "a text in quotes",
}
# A table may hold keys, and so may a value in its place: only their kind is shown.
_HIDDEN_KINDS: Final = ("model_", "dict_type", "mapping_type")
_TOML_KINDS: Final = {str: "a text", list: "a list", dict: "a table", bool: "true or false"}
_URL_QUERY: Final = re.compile(r"[?#].*", re.DOTALL)


class ConfigError(Exception):
    """The configuration cannot be used; each line names the key, the value and what was expected."""


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
    doors: Doors = Doors()
    guardrails: Guardrails = Guardrails()
    files: Files = Files()
    refusals: Refusals = Refusals()
    traces: Traces = Traces()
    access: Access = Access()
    limits: Limits = Limits()
    live: Live = Live()
    explorer: Explorer = Explorer()
    logs: Logs = Logs()
    telemetry: Telemetry = Telemetry()
    alerts: tuple[Alert, ...] = ()
    prices: Mapping[str, Price] = Field(default_factory=dict)

    @field_validator("alerts")
    @classmethod
    def _names(cls, value: tuple[Alert, ...]) -> tuple[Alert, ...]:
        if len({alert.name for alert in value}) < len(value) or len(value) > MAX_ALERTS:
            raise ValueError(f"at most {MAX_ALERTS} alerts, each with a unique name")
        return value


@dataclass(frozen=True, slots=True)
class ServiceManager:
    """Settings from systemd: the notification socket, the watchdog's period in seconds, sockets by name."""

    notify_socket: str | None
    watchdog_seconds: float | None
    descriptors: Mapping[int, str]


def service_manager() -> ServiceManager:
    """Read $NOTIFY_SOCKET and $WATCHDOG_USEC, and $LISTEN_FDS where $LISTEN_PID is this process (sd_listen_fds(3)).

    The descriptors have the names of $LISTEN_FDNAMES, "" for those without a name there.
    """
    usec = os.environ.get("WATCHDOG_USEC", "")
    count = os.environ.get("LISTEN_FDS", "") if os.environ.get("LISTEN_PID") == str(os.getpid()) else ""
    names = iter(os.environ.get("LISTEN_FDNAMES", "").split(":"))
    numbers = range(_FIRST_PASSED, _FIRST_PASSED + int(count)) if count.isdecimal() else ()
    return ServiceManager(
        os.environ.get("NOTIFY_SOCKET"),
        int(usec) / 1e6 if usec.isdecimal() else None,
        {number: next(names, "") for number in numbers},
    )


def child_environment() -> dict[str, str]:
    """Return the environment for a process that serves beside this one, without what is for this one only."""
    return {name: value for name, value in os.environ.items() if not name.startswith(_TO_ONE_PROCESS)}


@dataclass(frozen=True, slots=True)
class PolicyFile:
    """A policy file: its path as the configuration's user knows it, its text, and the Unix time of its last change."""

    path: str
    text: str
    modified: float


def load_config(file: Path | None = None) -> Config:
    """Return the configuration from ``file`` (TOML; None means defaults), the environment and systemd's credentials.

    Raises ConfigError with one line per fault.
    """
    values = _read_toml(file) if file else {}
    _check_environment(os.environ)
    try:
        config = Config(**values)
    except ValidationError as error:
        raise ConfigError("\n".join(_explain(error, Config, _sources(file)))) from None
    except (ValueError, RecursionError):
        raise ConfigError("\n".join(_not_json(os.environ))) from None
    config = _with_credentials(config)
    config = config.model_copy(update={"alerts": tuple(map(_with_alert_credentials, config.alerts))})
    _check_access(config)
    _check_services(config)
    return config


def _sources(file: Path | None) -> Callable[[Sequence[str]], str]:
    """Name the source of a key's value: the variable that sets it or its parent, or else the file."""
    variables = {name.upper(): name for name, value in os.environ.items() if value}

    def source(path: Sequence[str]) -> str:
        for length in range(len(path), 0, -1):
            name = ENVIRONMENT_PREFIX + "__".join(path[:length]).upper()
            if name in variables:
                return f"environment: {variables[name]}"
        return str(file) if file else "configuration"

    return source


def _not_json(environ: Mapping[str, str]) -> Iterator[str]:
    """Yield a line for each variable that should be JSON and is not; without its value, which may be a key."""
    for name, value in environ.items():
        path = name.upper().removeprefix(ENVIRONMENT_PREFIX).lower().split("__")
        if name.upper().startswith(ENVIRONMENT_PREFIX) and value and _wants_json(path) and not _is_json(value):
            yield f'environment: {name}: expected JSON, such as \'["one", "two"]\' for a list'


def _wants_json(path: Sequence[str]) -> bool:
    """Return whether the key is a list or a table."""
    kind: Any = Config
    for step in path:
        if not (isinstance(kind, type) and issubclass(kind, BaseModel) and step in kind.model_fields):
            return False
        kind = kind.model_fields[step].annotation
    return get_origin(kind) in (tuple, Mapping) or (isinstance(kind, type) and issubclass(kind, BaseModel))


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


def configuration_digest(config: Config) -> str:
    """Return the SHA-256 of all settings except secrets, and URLs that may hold one: it reveals none of these."""
    hidden: Any = {"traces": {"database", "notify_database", "read_database"}, "alerts": {"__all__": {"url"}}}
    settings = config.model_dump(mode="json", exclude=hidden)
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()


_BUILT_ONCE: Final = ("engine", "remote", "judge", "model_armor", "classifier", "presidio", "semgrep", "timeout")
IN_PLACE: Final = frozenset(
    {
        *(f"guardrails.{name}" for name in Guardrails.model_fields if name not in _BUILT_ONCE),
        *(f"doors.{name}" for name in Doors.model_fields),
        *(f"files.{name}" for name in Files.model_fields),
        *(f"refusals.{name}" for name in Refusals.model_fields),
        *(f"logs.{name}" for name in Logs.model_fields),
        *(f"limits.{name}" for name in Limits.model_fields),
        "alerts",
        "prices",
        *(f"live.{name}" for name in Live.model_fields),
        "traces.retention_days",
        "traces.max_size",
        "traces.required",
        "traces.durability",
    }
)
"""Keys that a reload changes in a running server. The others are of what is built once: sockets, pools, the store."""


def reloaded(running: Config, loaded: Config) -> tuple[Config, tuple[str, ...]]:
    """Return ``running`` with what ``loaded`` can change without a restart, and the names of the other changed keys."""
    found = _in_place(running, loaded, "")
    return found, tuple(_changed(found, loaded, ""))


def _in_place(running: _Model, loaded: _Model, prefix: str) -> _Model:
    update: dict[str, object] = {}
    for name in type(running).model_fields:
        value, new, key = getattr(running, name), getattr(loaded, name), f"{prefix}{name}"
        if isinstance(value, BaseModel):
            update[name] = _in_place(value, new, f"{key}.")
        elif key in IN_PLACE:
            update[name] = new
    return running.model_copy(update=update)


def _changed(running: BaseModel, loaded: BaseModel, prefix: str) -> Iterator[str]:
    for name in type(running).model_fields:
        value, new = getattr(running, name), getattr(loaded, name)
        if isinstance(value, BaseModel):
            yield from _changed(value, new, f"{prefix}{name}.")
        elif value != new:
            yield f"{prefix}{name}"


def read_policies(patterns: Sequence[str], folder: Path, key: str = "guardrails.policies") -> tuple[PolicyFile, ...]:
    """Return the files that ``patterns``, the value of ``key``, name relative to ``folder``, each once and in order.

    Raises ConfigError for a pattern without a file: a missing policy would silently check nothing.
    """
    found: dict[str, PolicyFile] = {}
    for pattern in patterns:
        paths = sorted(glob.glob(str(folder / pattern), recursive=True))
        if not paths:
            raise ConfigError(f'{key}: no file matches "{pattern}" in {folder}')
        for path in paths:
            found[path] = _read_policy(Path(path), os.path.relpath(path, folder))
    return tuple(found.values())


def _read_policy(path: Path, name: str) -> PolicyFile:
    text = _read_text(path)
    try:
        return PolicyFile(name, text, path.stat().st_mtime)
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from None


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


def _with_credentials(config: Config) -> Config:
    for name, path in _CREDENTIALS.items():
        if (secret := _credential(name)) is not None:
            check = valid_value_keys if name == "value-keys" else sendable
            try:
                config = _replaced(config, path, check(SecretStr(secret)))
            except ValueError as error:
                raise ConfigError(f"credential {name}: expected {error}") from None
    return config


def _with_alert_credentials(alert: Alert) -> Alert:
    update: dict[str, SecretStr] = {}
    checks: tuple[tuple[str, str, Callable[[SecretStr], SecretStr]], ...] = (
        ("url", "url", valid_webhook_url),
        ("signing_secret", "secret", valid_signing_secret),
    )
    for field, suffix, check in checks:
        name = f"alert-{alert.name}-{suffix}"
        if (secret := _credential(name)) is not None:
            try:
                update[field] = check(SecretStr(secret))
            except ValueError as error:
                raise ConfigError(f"credential {name}: expected {error}") from None
    return alert.model_copy(update=update)


def _replaced(model: _Model, path: Sequence[str], value: object) -> _Model:
    """Return a copy of a section, or of the whole, with one key set."""
    first, *rest = path
    return model.model_copy(update={first: _replaced(getattr(model, first), rest, value) if rest else value})


def _credential(name: str) -> str | None:
    """Return a secret that systemd placed for this unit (LoadCredential=), without its trailing newline."""
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
    if config.access.mode != "open":
        return
    for address in map(listen_address, config.server.listen):
        if not address.local:
            raise ConfigError(
                f'server.listen: "{address}" is reachable from other machines, which access.mode = "open" does not '
                'allow; expected a loopback address or "unix:/path" behind a server such as nginx'
            )


def _check_services(config: Config) -> None:
    """A service that is this server itself would be asked because of its own answers, without end."""
    remote, push = config.guardrails.remote, config.explorer.push
    asked: dict[str, str | None] = {"upstream.base_url": config.upstream.base_url, "explorer.push.url": push.url}
    asked["upstream.vertex"] = config.upstream.vertex if config.upstream.vertex != "google" else None
    if config.guardrails.engine == "remote":
        if not remote.url:
            raise ConfigError('guardrails.remote.url: needed for guardrails.engine = "remote"')
        asked["guardrails.remote.url"] = remote.url
    asked["guardrails.judge.url"] = config.guardrails.judge.url
    asked["guardrails.model_armor.url"] = config.guardrails.model_armor.url
    for key, url in asked.items():
        for address in map(listen_address, config.server.listen):
            if url and address.serves(url):
                raise ConfigError(f'{key}: "{url}" is this server itself: server.listen has "{address}"')
    for alert in config.alerts:
        url = alert.url.get_secret_value() if alert.url else None
        if url and any(listen_address(address).serves(url) for address in config.server.listen):
            raise ConfigError(f"alerts.{alert.name}.url: it is this server itself")


def check_secrets(config: Config) -> None:
    """Raise ConfigError where a server would miss a key. Other commands do without: systemd gives keys to a service."""
    remote, push = config.guardrails.remote, config.explorer.push
    if config.guardrails.engine == "remote" and config.access.mode == "keys" and not remote.api_key:
        raise ConfigError(_missing("guardrails-api-key", "for the clients' keys are this server's own"))
    judge = config.guardrails.judge
    if judge.url and not judge.api_key:
        raise ConfigError(_missing("judge-api-key", "for guardrails.judge.url: clients' keys go only to the upstream"))
    if config.guardrails.value_keys and not config.guardrails.mask_key:
        raise ConfigError(_missing("mask-key", "for guardrails.value_keys: values are looked up by their placeholders"))
    if push.url and not push.api_key:
        raise ConfigError(_missing("explorer-api-key", "for explorer.push.url"))
    if config.telemetry.enabled and importlib.util.find_spec("opentelemetry") is None:
        raise ConfigError('telemetry.enabled: needs pip install "gemini-proxy[otel]"')
    for alert in config.alerts:
        if alert.url is None:
            raise ConfigError(f'alerts.{alert.name}.url: needed; also as the credential "alert-{alert.name}-url"')


def _missing(credential: str, why: str) -> str:
    path = _CREDENTIALS[credential]
    variable = ENVIRONMENT_PREFIX + "__".join(path).upper()
    return f'{".".join(path)}: needed, {why}; as the credential "{credential}", or in the environment as {variable}'


def _explain(error: ValidationError, config: type[BaseModel], source: Callable[[Sequence[str]], str]) -> Iterator[str]:
    """Each fault of ``error`` as "source: key: value: expected what". ``source`` says where a key's value is from."""
    for fault in error.errors(include_url=False):
        path = [str(step) for step in fault["loc"]]
        where = f"{source(path)}: {'.'.join(path)}"
        if fault["type"] == "extra_forbidden":
            yield f"{where}: unknown key{_nearest(path[-1], _known_keys(config, path[:-1]))}"
        else:
            hidden = fault["type"].startswith(_HIDDEN_KINDS)
            shown = _kind(fault["input"]) if hidden else _shown_value(path, fault["input"])
            yield f"{where}: {shown}: expected {_expected(fault['type'], fault['msg'])}"


def _nearest(name: str, known: set[str]) -> str:
    """Return the hint about an unknown name: the one that was probably meant, or all."""
    close = difflib.get_close_matches(name, known, n=1)
    return f' (did you mean "{close[0]}"?)' if close else f" (known are {', '.join(sorted(known))})"


def _expected(kind: str, message: str) -> str:
    plain = message.removeprefix("Value error, ").removeprefix("Input should be ")
    return next((words for start, words in _EXPECTED_KINDS.items() if kind.startswith(start)), plain)


def _kind(value: object) -> str:
    return _TOML_KINDS.get(type(value), "a number")


def _shown_value(path: Sequence[str], value: object) -> str:
    """Return a wrong value without what is secret in it."""
    key = path[-1]
    if key.endswith(("api_key", "signing_secret", "value_keys")) or (path[0] == "alerts" and key == "url"):
        return "***"
    if key.endswith("database") and isinstance(value, str):
        # This imports SQLAlchemy, which takes longer than everything else in reading a configuration.
        from gemini_proxy.traces.database import shown_url

        return repr(shown_url(value))
    if not all(isinstance(one, str | int | float) for one in (value if isinstance(value, list) else [value])):
        return _kind(value)
    shown = repr(redact(_without_credentials(value)))
    return shown if len(shown) <= _LONGEST_VALUE else f"{shown[:_LONGEST_VALUE]}…"


def _without_credentials(value: object) -> object:
    """Return a URL without its user, password, query and fragment; also a list of them."""
    if isinstance(value, list):
        return [_without_credentials(one) for one in value]
    if not isinstance(value, str):
        return value
    before, at, host = value.rpartition("@")
    scheme, slashes, _ = before.partition("//")
    bare = f"{scheme}{slashes}***@{host}" if at and slashes else f"***@{host}" if at else value
    return _URL_QUERY.sub("?***", bare)


def _known_keys(config: type[BaseModel], path: Sequence[str]) -> set[str]:
    model: Any = config
    for step in path:
        # A step into a list or a table of tables is a number or any name: their contents are known already.
        if step in model.model_fields:
            kind = model.model_fields[step].annotation
            model = {tuple: get_args(kind)[:1], Mapping: get_args(kind)[-1:]}.get(get_origin(kind), (kind,))[0]
    return set(model.model_fields)
