"""Load a server's sources: the configuration and its policies, read and compiled, or all faults in them."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from gemini_proxy.config import Config, ConfigError, PolicyFile, check_secrets, load_config, read_policies
from gemini_proxy.guardrails.plugins import PluginError
from gemini_proxy.guardrails.rules import Action, Guardrail, GuardrailSet, guardrail, parameters_missing
from gemini_proxy.policy import PolicyError
from gemini_proxy.server.asked_services import unanswerable


class PolicyFaults(ConfigError):
    """Policies that cannot be used: a line a fault. ``shown`` has the source lines as well."""

    def __init__(self, faults: Sequence[Exception]) -> None:
        super().__init__("\n".join(map(str, faults)))
        self.shown = "\n".join(
            f"{fault}\n{fault.caret()}" if isinstance(fault, PolicyError) else str(fault) for fault in faults
        )


@dataclass(frozen=True, slots=True)
class Sources:
    """A configuration and the policies that it names, as read: what the processes of one server pass on."""

    config: Config
    policies: tuple[PolicyFile, ...]
    log_policies: tuple[PolicyFile, ...]
    mask_policies: tuple[PolicyFile, ...] = ()
    ask_policies: tuple[PolicyFile, ...] = ()


def load_sources(file: Path | None) -> Sources:
    """Read the configuration of a server from ``file``, and its policies. Raises ConfigError."""
    config = load_config(file)
    check_secrets(config)
    return read_sources(config, file)


def read_sources(config: Config, file: Path | None) -> Sources:
    """Read the policies that ``config`` names, relative to its file.

    Raises PolicyFaults for files that cannot be read, together with the faults in the others.
    """
    folder = file.parent if file else Path()
    guardrails = config.guardrails
    faults: list[Exception] = []
    sources = Sources(
        config,
        _read("guardrails.policies", guardrails.policies, folder, faults),
        _read("guardrails.log_policies", guardrails.log_policies, folder, faults),
        _read("guardrails.mask_policies", guardrails.mask_policies, folder, faults),
        _read("guardrails.ask_policies", guardrails.ask_policies, folder, faults),
    )
    if faults:
        _compile(sources, faults)
        raise PolicyFaults(faults)
    return sources


def compile_sources(sources: Sources) -> GuardrailSet:
    """Compile what was read. Raises PolicyFaults with all faults of all files."""
    faults: list[Exception] = []
    rules = _compile(sources, faults)
    if faults:
        raise PolicyFaults(faults)
    return rules


def _read(key: str, patterns: Sequence[str], folder: Path, faults: list[Exception]) -> tuple[PolicyFile, ...]:
    try:
        return read_policies(patterns, folder, key)
    except ConfigError as error:
        faults.append(error)
        return ()


def _compile(sources: Sources, faults: list[Exception]) -> GuardrailSet:
    """Return the rules of the files without a fault; add the faults of the others to ``faults``."""
    rules = GuardrailSet(
        _compiled(sources.policies, "block", faults),
        _compiled(sources.log_policies, "log", faults),
        masking=_compiled(sources.mask_policies, "mask", faults),
        asking=_compiled(sources.ask_policies, "ask", faults),
    )
    if sources.config.guardrails.engine == "native":
        faults += [
            ConfigError(f"{rule.name}: {missing}")
            for rule in rules.all
            for missing in unanswerable(sources.config, rule.policy.asks)
        ]
    faults += [
        ConfigError(f"guardrails.parameters: {missing} is not set")
        for missing in parameters_missing(rules.all, dict(sources.config.guardrails.parameters))
    ]
    return rules


def _compiled(files: Sequence[PolicyFile], action: Action, faults: list[Exception]) -> tuple[Guardrail, ...]:
    compiled: list[Guardrail] = []
    try:
        for file in files:
            try:
                compiled.append(replace(guardrail(file.path, file.text, action, asks=True), modified=file.modified))
            except PolicyError as error:
                faults.append(error)
    except PluginError as error:
        faults.append(error)
    return tuple(compiled)
