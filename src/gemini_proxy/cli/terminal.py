"""What a model, a user or a file said, on a terminal: text, never markup and never a control sequence."""

from datetime import datetime

from rich.console import Console
from rich.text import Text

from gemini_proxy.traces.visible import ONE_LINE, as_json


def terminal(*, stderr: bool = False) -> Console:
    """A console that takes text as it is."""
    return Console(markup=False, highlight=False, emoji=False, soft_wrap=False, stderr=stderr)


def line(value: object, style: str = "") -> Text:
    """Any value as one line of visible text."""
    return Text((value if isinstance(value, str) else as_json(value)).translate(ONE_LINE), style)


def local_time(created: float) -> str:
    """A Unix time as date and time here."""
    return datetime.fromtimestamp(created).astimezone().strftime("%Y-%m-%d %H:%M:%S")
