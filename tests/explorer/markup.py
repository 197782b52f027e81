"""What somebody may write into any field that is recorded, hoping that a page takes it for more than text."""

import time
import uuid

from gemini_proxy.traces.trace import Annotation, Outcome, Trace
from tests.explorer.browsing import mine

PAYLOADS = (
    "<script>window.hit=1</script>",
    "<ScRiPt>window.hit=2</sCrIpT>",
    "<img src=x onerror=window.hit=3>",
    "<svg onload=window.hit=4>",
    "<svg><script>window.hit=5</script></svg>",
    '"><script>window.hit=6</script>',
    "'><img src=x onerror='window.hit=7'>",
    "</textarea><script>window.hit=8</script>",
    "</title><script>window.hit=9</script>",
    "</style><script>window.hit=10</script>",
    "--><script>window.hit=11</script>",
    "]]><script>window.hit=12</script>",
    "{{ 7*7 }}{% raise %}{# x #}",
    "${window.hit=14}`+window.hit+`",
    "javascript:window.hit=15",
    "data:text/html,<script>window.hit=16</script>",
    "<a href=javascript:window.hit=17>click</a>",
    "<iframe srcdoc='<script>parent.hit=18</script>'></iframe>",
    "<object data=javascript:window.hit=19></object>",
    "<embed src=javascript:window.hit=20>",
    "<meta http-equiv=refresh content='0;url=javascript:window.hit=21'>",
    "<base href=https://evil.example/>",
    "<link rel=stylesheet href=https://evil.example/x.css>",
    "<form action=https://evil.example><input autofocus onfocus=window.hit=24></form>",
    "<style>@import 'https://evil.example/x.css';*{display:none}</style>",
    '" onmouseover=window.hit=26 autofocus onfocus=window.hit=26 x="',
    "<details open ontoggle=window.hit=27>",
    "<math><mtext></mtext><mglyph><style><img src=x onerror=window.hit=28></style></mglyph></math>",
    "&lt;script&gt;window.hit=29&lt;/script&gt;&#60;b&#62;",
    "\u003cscript\u003ewindow.hit=30\u003c/script\u003e\u2028\u2029<!--",
    "<noscript><p title='</noscript><img src=x onerror=window.hit=31>'></noscript>",
    "<template><script>window.hit=32</script></template><slot>",
)


def hostile(payload: str) -> Trace:
    """A trace with the payload in every field that can hold it."""
    rule = {"id": payload, "name": payload, "content": payload, "action": payload}
    call = {"id": payload, "type": payload, "function": {"name": payload, "arguments": {payload: [payload]}}}
    media = [
        {"type": "image_url", "image_url": {"url": payload}, "text": payload},
        {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{payload}"}},
        {"type": "file", "file": {"uri": payload, "mime_type": payload, "name": payload}},
        {"type": payload, payload: payload},
    ]
    messages = [
        {"tools": [{"name": payload, "description": payload, "parameters": {payload: payload}}]},
        {"role": payload, "content": payload, payload: payload, "candidate": payload},
        {"role": "user", "content": media},
        {"role": "assistant", "content": payload, "thought": True, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": payload, "name": payload, "content": {payload: payload}},
    ]
    metadata = {
        payload: payload,
        "usage": {"promptTokenCount": payload},
        "model_version": payload,
        "coverage": {
            "verdict": payload,
            "mode": payload,
            "rules": [payload],
            "not_checked": [{"address": payload, "reason": payload}],
        },
        "refusal": {"reason": payload, "text": payload},
        "error": payload,
        "conversation": payload,
        "asked": payload,
        "upstream_status": 429,
        "upstream_error": {"status": payload, "message": payload},
    }
    return mine(
        id=str(uuid.uuid4()),
        created=time.time(),
        dataset="hostile",
        model=payload,
        outcome=Outcome.REFUSED_REQUEST,
        messages=messages,
        metadata=metadata,
        annotations=(
            Annotation(payload, "messages.1.content:0-5", payload, rule, {payload: payload}),
            Annotation(payload, payload, payload, rule),
        ),
    )
