"""``python -m bench.leaks``: a key in every place of an exchange where it could stand, and which of them a proxy sees.

gemini-proxy runs with ``policies/secrets.gr``; ``--litellm FOLDER`` also runs LiteLLM's proxy, from the environment in
that folder, with its content filter on requests and on responses. The scripted Gemini tells what reached it.
"""

import asyncio
import json
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import aiohttp
import click
from aiohttp import web

from bench.peers import Peer, Setting, Stage
from bench.processes import ProcessError, module, serving

KEY: Final = "AIza" + "Sy" + "A1b2C3d4E5" * 3 + "f6g"
_HALF: Final = 15
_SECRETS: Final = Path(__file__).parents[1] / "policies" / "secrets.gr"
_TIMEOUT: Final = aiohttp.ClientTimeout(total=30)

Json = Mapping[str, Any]


def _user(*parts: Json) -> Json:
    return {"contents": [{"role": "user", "parts": list(parts)}]}


_HELLO: Final = _user({"text": "hello"})


@dataclass(frozen=True, slots=True)
class Place:
    """A place where the key stands: in the request, or in the ``events`` of a response."""

    name: str
    request: Json = field(default_factory=lambda: _HELLO)
    events: tuple[tuple[Json, ...], ...] = (({"text": "fine"},),)
    streams: bool = False

    @property
    def model(self) -> str:
        return f"leak-{PLACES.index(self)}"


_CALL: Final[Json] = {"functionCall": {"name": "send", "args": {"to": KEY}}}
_OUTPUT: Final[Json] = {"functionResponse": {"name": "read", "response": {"text": KEY}}}
_TEXT: Final[Json] = {"text": f"the key is {KEY}"}
_HALVES: Final[tuple[Json, Json]] = ({"text": f"the key is {KEY[:_HALF]}"}, {"text": KEY[_HALF:]})
PLACES: Final = (
    Place("a prompt", _user({"text": KEY})),
    Place("a prompt, in two parts", _user({"text": KEY[:_HALF]}, {"text": KEY[_HALF:]})),
    Place("the system instruction", {**_HELLO, "systemInstruction": {"parts": [{"text": KEY}]}}),
    Place("the output of a tool", _user(_OUTPUT)),
    Place(
        "an argument of a call in the history",
        {"contents": [*_HELLO["contents"], {"role": "model", "parts": [_CALL]}, *_user({"text": "go on"})["contents"]]},
    ),
    Place(
        "the description of a tool",
        {**_HELLO, "tools": [{"functionDeclarations": [{"name": "read", "description": f"use {KEY}"}]}]},
    ),
    Place("a response", events=((_TEXT,),)),
    Place("a call in a response", events=((_CALL,),)),
    Place("a streamed response", events=((_TEXT,), ({"text": "."},)), streams=True),
    Place("a streamed response, over two events", events=((_HALVES[0],), (_HALVES[1],)), streams=True),
    Place("a call in a streamed response", events=((_CALL,), ({"text": "."},)), streams=True),
)


@click.command()
@click.option(
    "--litellm", type=click.Path(path_type=Path, exists=True, file_okay=False), help="An environment with it."
)
def main(litellm: Path | None) -> None:
    """Print for each place whether the key crossed the line. Exit code 1 if it crossed gemini-proxy's."""
    try:
        crossed = run(litellm)
    except ProcessError as error:
        raise click.ClickException(str(error)) from None
    click.echo(table(crossed))
    sys.exit(1 if any(crossed[Peer.PROXY]) else 0)


def run(litellm: Path | None) -> dict[Peer, list[bool]]:
    """Return for each peer whether the key crossed, by place. Raises ProcessError."""
    with tempfile.TemporaryDirectory(prefix="gemini-proxy-leaks-") as name:
        folder = Path(name)
        setting = Setting("window", litellm=litellm, policies=(_SECRETS,))
        with serving(module("bench.leaks", "upstream"), folder / "upstream.log") as upstream:
            stage = Stage(folder, upstream, setting)
            found = {}
            for peer in (Peer.PROXY, *setting.extra):
                with stage.fresh(peer) as server:
                    found[peer] = asyncio.run(crossings(server.process.port))
            return found


async def crossings(port: int) -> list[bool]:
    """Return for each place whether the key crosses a proxy on ``port``, or none. Raises ProcessError."""
    async with aiohttp.ClientSession(timeout=_TIMEOUT) as session:
        return [await _crosses(session, port, place) for place in PLACES]


async def _crosses(session: aiohttp.ClientSession, port: int, place: Place) -> bool:
    """Tell whether the key reached the upstream or came back. A place that nobody answers for proves nothing."""
    verb = "streamGenerateContent?alt=sse" if place.streams else "generateContent"
    url = f"http://127.0.0.1:{port}/v1beta/models/{place.model}:{verb}"
    async with session.post(url, json=place.request, headers={"x-goog-api-key": "bench"}) as response:
        said = (await response.read()).decode()
        if response.status not in (200, 400):
            raise ProcessError(f"{place.name}: HTTP {response.status}: {said[:500]}")
    return _SEEN in said or KEY in said or (KEY[:_HALF] in said and KEY[_HALF:] in said)


_SEEN: Final = "the key was seen"


def table(crossed: Mapping[Peer, list[bool]]) -> str:
    """Return the table in Markdown, a row for each place and a column for each peer."""
    return "\n".join(_rows(crossed))


def _rows(crossed: Mapping[Peer, list[bool]]) -> Iterator[str]:
    yield f"| the key stands in | {' | '.join(crossed)} |"
    yield f"|---|{'---|' * len(crossed)}"
    for number, place in enumerate(PLACES):
        yield f"| {place.name} | {' | '.join('**passes**' if one[number] else 'stopped' for one in crossed.values())} |"


async def _answer(request: web.Request) -> web.StreamResponse:
    body = await request.text()
    place = PLACES[int(request.match_info["number"])]
    seen = KEY in body or (KEY[:_HALF] in body and KEY[_HALF:] in body)
    events = (*(({"text": _SEEN},) for _ in range(seen)), *place.events)
    if not place.streams:
        return web.json_response(_response([part for event in events for part in event], "STOP"))
    response = web.StreamResponse(headers={"content-type": "text/event-stream"})
    await response.prepare(request)
    for number, event in enumerate(events, start=1):
        payload = json.dumps(_response(list(event), "STOP" if number == len(events) else None))
        await response.write(f"data: {payload}\r\n\r\n".encode())
    return response


def _response(parts: list[Json], finish: str | None) -> Json:
    candidate = {"content": {"role": "model", "parts": parts}, "index": 0}
    return {"candidates": [{**candidate, "finishReason": finish} if finish else candidate], "modelVersion": "leak-1"}


async def _serve() -> None:
    app = web.Application()
    app.router.add_post(r"/{any:.*}models/leak-{number:\d+}:{verb}", _answer)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    print(f"listening on 127.0.0.1:{runner.addresses[0][1]}", flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    if sys.argv[1:] == ["upstream"]:
        asyncio.run(_serve())
    main()
