"""langchain-openai on Gemini's OpenAI path."""

from langchain_openai import ChatOpenAI

from tests.clients.matrix.drivers.driver import KEY, MODEL
from tests.clients.matrix.drivers.langchain import serve_chats

if __name__ == "__main__":
    serve_chats(lambda base_url: ChatOpenAI(model=MODEL, api_key=KEY, base_url=f"{base_url}/v1beta/openai/"))
