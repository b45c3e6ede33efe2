"""What TGI's own client sees: one JSON document. Usage: text_generation.py URL KEY CHAT EMBEDDING"""

import asyncio
import json
import sys

url, key, model, _ = sys.argv[1:]
sys.path.pop(0)  # this file is called like the package

from text_generation import AsyncClient, Client  # noqa: E402

headers = {"Authorization": f"Bearer {key}"}
prompt = "The capital of France is"
client = Client(f"{url}/tgi/{model}", headers=headers, timeout=60)
root = Client(url, headers=headers, timeout=60)
whole = client.generate(prompt, max_new_tokens=8)
events = list(client.generate_stream(prompt, max_new_tokens=8))


async def again():
    return await AsyncClient(f"{url}/tgi/{model}", headers=headers, timeout=60).generate(prompt, max_new_tokens=8)


try:
    client.generate("", max_new_tokens=8)
    error = None
except Exception as raised:
    error = type(raised).__name__
print(
    json.dumps(
        {
            "text": whole.generated_text,
            "finish": whole.details.finish_reason.value,
            "tokens": whole.details.generated_tokens,
            "streamed": "".join(event.token.text for event in events if not event.token.special),
            "last": events[-1].generated_text,
            "root": root.generate(prompt, max_new_tokens=8).generated_text,
            "again": asyncio.run(again()).generated_text,
            "error": error,
        }
    )
)
