"""What Haystack's OpenAI components see: one JSON document. Usage: haystack.py URL KEY CHAT EMBEDDING"""

import json
import os
import sys

url, key, model, embedding = sys.argv[1:]
os.environ["OPENAI_API_KEY"] = key
sys.path.pop(0)  # this file is called like the package

from haystack import Pipeline  # noqa: E402
from haystack.components.builders import ChatPromptBuilder  # noqa: E402
from haystack.components.embedders import OpenAITextEmbedder  # noqa: E402
from haystack.components.generators.chat import OpenAIChatGenerator  # noqa: E402
from haystack.dataclasses import ChatMessage  # noqa: E402

base = f"{url}/v1"
options = {"max_tokens": 12, "temperature": 0}
said = [ChatMessage.from_user("Say hello.")]


def generator(**more):
    return OpenAIChatGenerator(model=model, api_base_url=base, generation_kwargs=options, max_retries=0, **more)


whole = generator().run(said)["replies"][0]
pieces = []
streamed = generator(streaming_callback=lambda chunk: pieces.append(chunk.content)).run(said)["replies"][0]
pipeline = Pipeline()
pipeline.add_component("prompt", ChatPromptBuilder(template=[ChatMessage.from_user("Say {{ word }}.")]))
pipeline.add_component("model", generator())
pipeline.connect("prompt.prompt", "model.messages")
piped = pipeline.run({"prompt": {"word": "hello"}})["model"]["replies"][0]
vector = OpenAITextEmbedder(model=embedding, api_base_url=base).run("le chat")["embedding"]
try:
    OpenAIChatGenerator(model="missing", api_base_url=base, max_retries=0).run(said)
    error = None
except Exception as raised:
    error = type(raised).__name__
print(
    json.dumps(
        {
            "text": whole.text,
            "usage": whole.meta["usage"]["completion_tokens"],
            "finish": whole.meta["finish_reason"],
            "streamed": streamed.text,
            "pieces": "".join(pieces),
            "count": len(pieces),
            "piped": piped.text,
            "vector": len(vector),
            "error": error,
        }
    )
)
