"""google-adk with ``use_interactions_api``, which goes on from the interaction before."""

from google.adk.models.google_llm import Gemini

from tests.clients.matrix.drivers.driver import MODEL, serve
from tests.clients.matrix.drivers.google_adk import operations

if __name__ == "__main__":
    serve(operations(lambda: Gemini(model=MODEL, use_interactions_api=True)))
