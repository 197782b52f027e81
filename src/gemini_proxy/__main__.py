"""``python -m gemini_proxy`` is ``gemini-proxy``."""

from gemini_proxy.cli import main

if __name__ == "__main__":
    main(prog_name="gemini-proxy")
