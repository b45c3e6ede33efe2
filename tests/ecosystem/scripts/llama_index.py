"""What LlamaIndex sees: one JSON document. Usage: llama_index.py URL KEY CHAT EMBEDDING"""

import json
import sys

url, key, model, embedding = sys.argv[1:]
sys.path.pop(0)  # this file is called like the package

from llama_index.core.llms import ChatMessage  # noqa: E402
from llama_index.embeddings.openai_like import OpenAILikeEmbedding  # noqa: E402
from llama_index.llms.openai_like import OpenAILike  # noqa: E402

base = f"{url}/v1"
options = {"api_base": base, "api_key": key, "max_tokens": 12, "temperature": 0, "max_retries": 0}
chat = OpenAILike(model=model, is_chat_model=True, context_window=2048, **options)
plain = OpenAILike(model=model, is_chat_model=False, context_window=2048, **options)
said = [ChatMessage(role="user", content="Say hello.")]
embedder = OpenAILikeEmbedding(model_name=embedding, api_base=base, api_key=key)
try:
    OpenAILike(model="missing", is_chat_model=True, **options).chat(said)
    error = None
except Exception as raised:
    error = type(raised).__name__
print(
    json.dumps(
        {
            "text": chat.chat(said).message.content,
            "streamed": "".join(chunk.delta or "" for chunk in chat.stream_chat(said)),
            "completed": plain.complete("The capital of France is").text,
            "vectors": [len(vector) for vector in embedder.get_text_embedding_batch(["le chat", "the cat"])],
            "error": error,
        }
    )
)
