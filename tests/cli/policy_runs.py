"""Running ``gemini-proxy policy`` in a folder of its own."""

from click.testing import CliRunner, Result

from gemini_proxy.cli import main

HOSTILE = "[red]not markup[/red] :smile: \x1b[31mnot colour\x9b1m \u202eflip\r"
LEAK = 'raise "it leaks" if:\n    (m: Message)\n    m.role == "assistant"\n    any(find("secret[a-z]*", m.content))\n'
CASES = """\
parameters: {word: x}
cases:
  - name: leaks
    fires: it leaks
    messages:
      - assistant: the secrets of the trade
  - name: does not
    fires: false
    messages:
      - user: the secrets of the trade
"""


def rule(*lines: str) -> str:
    """A policy of one rule."""
    return "\n    ".join(('raise "x" if:', *lines)) + "\n"


def run(*arguments: str, color: bool = False) -> Result:
    """``gemini-proxy policy`` with these arguments."""
    runner = CliRunner(env={"COLUMNS": "160", **({"FORCE_COLOR": "1"} if color else {})})
    return runner.invoke(main, ["policy", *arguments], color=color)
