"""Policy files as commands get them, and how a fault in one is shown."""

from pathlib import Path

import click

from gemini_proxy.guardrails.plugins import PluginError, load_policy
from gemini_proxy.policy import Policy, PolicyError, PolicyWarning
from gemini_proxy.traces.visible import ONE_LINE


class Unusable(click.ClickException):
    """What the command was given cannot be used, so there is no answer; exit code 2, as for wrong usage."""

    exit_code = 2


def read_text(file: Path) -> str:
    """A file that an argument names. Raises Unusable."""
    try:
        return file.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise Unusable(f"{file}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise Unusable(f"{file}: not UTF-8") from None


def compile_file(file: Path) -> Policy:
    """The policy in ``file``. Raises PolicyError, and Unusable where a detector plug-in is broken."""
    try:
        return load_policy(read_text(file), str(file), asks=True)
    except PluginError as error:
        raise Unusable(str(error)) from None


def usable_policy(file: Path) -> Policy:
    """As ``compile_file``, but a policy that does not load is Unusable as well."""
    try:
        return compile_file(file)
    except PolicyError as error:
        raise Unusable(f"the policy does not load\n{described_error(error)}") from None


def described_error(error: PolicyError) -> str:
    """``file:line:column: error: reason``, the source line with a caret, and the suggestion."""
    return _described("error", error)


def described_warning(policy: Policy, warning: PolicyWarning) -> str:
    """As ``described_error``, for something that loads."""
    return _described("warning", _place(policy, warning))


def described_note(policy: Policy, note: PolicyWarning) -> str:
    """As ``described_error``, for something that means something else in Invariant's engine."""
    return _described("note: reads differently in Invariant's engine", _place(policy, note))


def _place(policy: Policy, warning: PolicyWarning) -> PolicyError:
    return PolicyError(policy.source, warning.line, warning.column, warning.message, text=policy.text)


def _described(kind: str, error: PolicyError) -> str:
    lines = [f"{error.source}:{error.line}:{error.column}: {kind}: {error.reason}"]
    source, caret = error.caret().split("\n")
    if source.strip():
        lines += [f"    {source}", f"    {caret}"]
    if error.suggestion:
        lines.append(f"    {error.suggestion}")
    return "\n".join(text.translate(ONE_LINE) for text in lines)
