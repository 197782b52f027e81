"""google-genai on Vertex AI, with a token of OAuth."""

from google import genai
from google.genai import types
from google.oauth2.credentials import Credentials

from tests.clients.matrix.drivers.driver import serve
from tests.clients.matrix.drivers.google_genai import operations


def client(base_url: str) -> genai.Client:
    token = Credentials(token="ya29.matrix")  # type: ignore[no-untyped-call]
    options = types.HttpOptions(base_url=base_url)
    return genai.Client(vertexai=True, project="p", location="europe-west4", credentials=token, http_options=options)


if __name__ == "__main__":
    serve(operations(client))
