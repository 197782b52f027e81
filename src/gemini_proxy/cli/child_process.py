"""``python -m gemini_proxy.cli.child_process DESCRIPTOR``: serve as one of several processes, for their parent."""

import pickle
import signal
import socket
import sys
from functools import partial

from gemini_proxy.cli.main import collect_seldom


def main(descriptor: int) -> None:
    """Serve what the parent sends over the socket ``descriptor``; exit with 1 if the parent is gone."""
    # All processes of a terminal get these signals; only the parent acts on them.
    for number in (signal.SIGHUP, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    collect_seldom()

    from gemini_proxy.cli.server_process import prepare, run_server
    from gemini_proxy.cli.settings import Settings
    from gemini_proxy.server.channel import receive_start
    from gemini_proxy.server.child import group_of, led, listeners_of
    from gemini_proxy.server.sources import Sources, compile_sources

    end = socket.socket(fileno=descriptor)
    end.set_inheritable(False)
    try:
        start = receive_start(end)
    except EOFError:
        sys.exit(1)
    settings = Settings(start.config_file)
    sources: Sources
    if start.sources is None:
        config, rules, sources = settings.serving, settings.rules, settings.sources
    else:
        sources = pickle.loads(start.sources)
        config, rules = sources.config, compile_sources(sources)
    prepare(config, start.first_key)
    oversight = partial(led, end=end, start=start, sources=sources, load=settings.load_again)
    run_server(config, rules, listeners_of(start), oversight, group_of(start))


if __name__ == "__main__":
    main(int(sys.argv[1]))
