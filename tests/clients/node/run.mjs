// What the official Node client sees: one JSON document on standard output. Usage: node run.mjs URL KEY CHAT EMBEDDING
import OpenAI, { APIError } from "openai";

const [url, apiKey, model, embeddingModel] = process.argv.slice(2);
const client = new OpenAI({ baseURL: `${url}/v1`, apiKey, maxRetries: 0 });
const messages = [{ role: "user", content: "Say hello." }];
const results = {};

async function failure(promise) {
  try {
    await promise;
    return null;
  } catch (error) {
    if (!(error instanceof APIError)) throw error;
    return { name: error.constructor.name, status: error.status, code: error.code, param: error.param };
  }
}

results.models = [];
for await (const entry of client.models.list()) results.models.push(entry.id);
results.model = (await client.models.retrieve(model)).id;

const chat = await client.chat.completions
  .create({ model, messages, max_tokens: 8, temperature: 0 })
  .withResponse();
results.chat = {
  object: chat.data.object,
  content: chat.data.choices[0].message.content,
  usage: chat.data.usage,
  requestId: chat.request_id,
};

const stream = await client.chat.completions.create({
  model,
  messages,
  max_tokens: 8,
  temperature: 0,
  stream: true,
  stream_options: { include_usage: true },
});
results.stream = { content: "", usage: null, finish: null };
for await (const chunk of stream) {
  results.stream.content += chunk.choices[0]?.delta?.content ?? "";
  results.stream.finish = chunk.choices[0]?.finish_reason ?? results.stream.finish;
  results.stream.usage = chunk.usage ?? results.stream.usage;
}

const completion = await client.completions.create({ model, prompt: "Once upon", max_tokens: 8, temperature: 0 });
results.completion = completion.choices[0].text;

const embeddings = await client.embeddings.create({ model: embeddingModel, input: ["chat", "cat"] });
results.embeddings = embeddings.data.map((entry) => Array.from(entry.embedding));

results.unauthenticated = await failure(
  new OpenAI({ baseURL: `${url}/v1`, apiKey: "sk-pas-wrong", maxRetries: 0 }).models.list(),
);
results.missing = await failure(client.chat.completions.create({ model: "missing", messages }));
results.bad = await failure(client.chat.completions.create({ model, messages, n: 1000000000 }));

// A stream that is left: the client must not hang on it.
const left = await client.chat.completions.create({ model, messages, max_tokens: 512, stream: true });
for await (const _ of left) break;
results.left = true;

console.log(JSON.stringify(results));
