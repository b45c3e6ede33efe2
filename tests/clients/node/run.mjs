// What the official Node client sees: one JSON document on standard output. Usage: node run.mjs URL KEY CHAT EMBEDDING
import OpenAI, { APIError, toFile } from "openai";

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

// Responses: whole, streamed, kept.
const response = await client.responses.create({ model, input: "Say hello.", max_output_tokens: 32, temperature: 0 });
results.response = { id: response.id, text: response.output_text, usage: response.usage };
results.response.kept = (await client.responses.retrieve(response.id)).output_text;
results.response.events = [];
const told = client.responses.stream({ model, input: "Say hello.", max_output_tokens: 32, temperature: 0 });
for await (const event of told) results.response.events.push(event.type);
results.response.streamed = (await told.finalResponse()).output[0].content[0].text;

// A file, and a batch of it.
const line = { custom_id: "a", method: "POST", url: "/v1/chat/completions", body: { model, messages, max_tokens: 8 } };
const file = await client.files.create({ file: await toFile(Buffer.from(JSON.stringify(line)), "l.jsonl"), purpose: "batch" });
let batch = await client.batches.create({
  input_file_id: file.id,
  endpoint: "/v1/chat/completions",
  completion_window: "24h",
});
while (["validating", "in_progress", "finalizing"].includes(batch.status)) {
  await new Promise((resolve) => setTimeout(resolve, 50));
  batch = await client.batches.retrieve(batch.id);
}
const output = await (await client.files.content(batch.output_file_id)).text();
results.batch = { status: batch.status, counts: batch.request_counts, line: JSON.parse(output), bytes: file.bytes };
results.deleted = (await client.files.delete(file.id)).deleted;

console.log(JSON.stringify(results));
