"""Read policy files for commands, and write a fault in one."""

import sys
from pathlib import Path
from typing import Final

import click

from gemini_proxy.guardrails.plugins import PluginError, load_policy
from gemini_proxy.policy import Policy, PolicyError, PolicyWarning
from gemini_proxy.traces.visible import ONE_LINE


class Unusable(click.ClickException):
    """An input of the command cannot be used, so there is no result; exit code 2, as for wrong usage."""

    exit_code = 2


STANDARD_INPUT: Final = Path("-")


def read_text(file: Path) -> str:
    """Read a file that an argument names, or ``STANDARD_INPUT``. Raise Unusable."""
    try:
        content = sys.stdin.buffer.read() if file is STANDARD_INPUT else file.read_bytes()
        return content.decode("utf-8-sig")
    except OSError as error:
        raise Unusable(f"{file}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise Unusable(f"{file}: not UTF-8") from None


def compile_file(file: Path) -> Policy:
    """Compile the policy in ``file``. Raise PolicyError, and Unusable if a detector plug-in is broken."""
    try:
        return load_policy(read_text(file), str(file), asks=True)
    except PluginError as error:
        raise Unusable(str(error)) from None


def usable_policy(file: Path) -> Policy:
    """Compile as ``compile_file`` does, but raise Unusable for a policy that does not load as well."""
    try:
        return compile_file(file)
    except PolicyError as error:
        raise Unusable(f"the policy does not load\n{described_error(error)}") from None


def described_error(error: PolicyError) -> str:
    """Write ``file:line:column: error: reason``, the source line with a caret, and the suggestion."""
    return _described("error", error)


def described_warning(policy: Policy, warning: PolicyWarning) -> str:
    """Write a warning as ``described_error`` does, for something that loads."""
    return _described("warning", _place(policy, warning))


def described_note(policy: Policy, note: PolicyWarning) -> str:
    """Write a note as ``described_error`` does, for something that means something else in Invariant's engine."""
    return _described("note: reads differently in Invariant's engine", _place(policy, note))


def _place(policy: Policy, warning: PolicyWarning) -> PolicyError:
    return PolicyError(
        policy.source, warning.line, warning.column, warning.message, warning.suggestion, text=policy.text
    )


def _described(kind: str, error: PolicyError) -> str:
    lines = [f"{error.source}:{error.line}:{error.column}: {kind}: {error.reason}"]
    source, caret = error.caret().split("\n")
    if source.strip():
        lines += [f"    {source}", f"    {caret}"]
    if error.suggestion:
        lines.append(f"    {error.suggestion}")
    return "\n".join(text.translate(ONE_LINE) for text in lines)
