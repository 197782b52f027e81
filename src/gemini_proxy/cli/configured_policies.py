"""The policies that a configuration names, compiled, or everything that is wrong with them."""

from collections.abc import Sequence
from pathlib import Path

from gemini_proxy.config import Config, ConfigError, read_policies
from gemini_proxy.guardrails.plugins import PluginError
from gemini_proxy.guardrails.rules import Action, Guardrail, RuleSet, guardrail, parameters_missing
from gemini_proxy.policy import PolicyError


class PolicyFaults(ConfigError):
    """Policies that cannot be used: a line a fault. ``shown`` has the source lines as well."""

    def __init__(self, faults: Sequence[Exception]) -> None:
        super().__init__("\n".join(map(str, faults)))
        self.shown = "\n".join(
            f"{fault}\n{fault.caret()}" if isinstance(fault, PolicyError) else str(fault) for fault in faults
        )


def compile_configured(config: Config, folder: Path) -> RuleSet:
    """Compile the policies that ``config`` names, relative to ``folder``.

    Raises PolicyFaults with all faults of all files.
    """
    guardrails = config.guardrails
    faults: list[Exception] = []
    blocking = _compile(guardrails.policies, "block", folder, faults)
    logging = _compile(guardrails.log_policies, "log", folder, faults)
    faults += [
        ConfigError(f"guardrails.parameters: {missing} is not set")
        for missing in parameters_missing((*blocking, *logging), dict(guardrails.parameters))
    ]
    if faults:
        raise PolicyFaults(faults)
    return RuleSet(blocking, logging)


def _compile(patterns: tuple[str, ...], action: Action, folder: Path, faults: list[Exception]) -> tuple[Guardrail, ...]:
    key = "guardrails.policies" if action == "block" else "guardrails.log_policies"
    compiled: list[Guardrail] = []
    try:
        for file in read_policies(patterns, folder, key):
            try:
                compiled.append(guardrail(file.path, file.text, action))
            except PolicyError as error:
                faults.append(error)
    except (ConfigError, PluginError) as error:
        faults.append(error)
    return tuple(compiled)
