"""A Gemini that keeps caches and files, for clients that make and use them."""

from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from tests.support.upstream import Call, Reply, candidate, unary

HOST = "https://generativelanguage.googleapis.com"


@dataclass
class Google:
    """What keeps caches and files as Google does, and answers what is asked of them."""

    kept: dict[str, dict[str, Any]] = field(default_factory=dict)
    uploads: dict[str, tuple[dict[str, Any], bytearray]] = field(default_factory=dict)
    bytes_of: dict[str, bytes] = field(default_factory=dict)

    def __call__(self, call: Call) -> Reply:
        path = urlsplit(call.target).path
        if path.startswith("/upload/"):
            return self._upload(call)
        if ":generateContent" in path:
            return unary(candidate("fine", "STOP"))
        name = path.split("/", 2)[2].removesuffix(":download")
        if call.method == "POST":
            return self._keep(f"cachedContents/c{len(self.kept)}", call.json)
        if "/" not in name:
            return unary({name: [one for key, one in self.kept.items() if key.startswith(name)]})
        if path.endswith(":download"):
            return Reply([self.bytes_of[name]], content_type="application/octet-stream")
        if name not in self.kept:
            return unary({"error": {"code": 404, "message": "gone", "status": "NOT_FOUND"}}, status=404)
        if call.method == "PATCH":
            self.kept[name] |= {"expireTime": "2100-01-01T00:00:00.123456789Z"}
        return unary(self.kept.pop(name) and {}) if call.method == "DELETE" else unary(self.kept[name])

    def _keep(self, name: str, said: dict[str, Any]) -> Reply:
        shown = {key: value for key, value in said.items() if key in ("displayName", "model", "mimeType")}
        self.kept[name] = {"name": name, **shown}
        return unary(self.kept[name])

    def _upload(self, call: Call) -> Reply:
        path, _, query = call.target.partition("?")
        if not query:
            number = str(len(self.uploads))
            said = call.json.get("file", {}) | {"mimeType": call.headers["x-goog-upload-header-content-type"]}
            self.uploads[number] = (said, bytearray())
            address = f"{HOST}{path}?upload_id={number}&upload_protocol=resumable"
            return Reply(headers={"x-goog-upload-url": address, "x-goog-upload-status": "active"}, chunked=False)
        said, data = self.uploads[query.partition("=")[2].partition("&")[0]]
        assert int(call.headers["x-goog-upload-offset"]) == len(data)
        data += call.body
        if "finalize" not in call.headers["x-goog-upload-command"]:
            return Reply(headers={"x-goog-upload-status": "active"}, chunked=False)
        name = said.get("name", f"files/f{len(self.kept)}")
        shown = {"mimeType": said["mimeType"], "displayName": said.get("display_name", "")}
        self.kept[name] = {"name": name, "uri": f"{HOST}/v1beta/{name}", **shown}
        self.bytes_of[name] = bytes(data)
        return unary({"file": self.kept[name]}, headers={"x-goog-upload-status": "final"})
