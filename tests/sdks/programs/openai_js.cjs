// The gateway by OpenAI's npm package: only `baseURL` and `model` are another.
const OpenAI = require("openai");

const MODEL = "tuneproof/hook";
const UNIT = "user-1";
const client = new OpenAI({ baseURL: process.argv[2], apiKey: "any", maxRetries: 0 });
const messages = [{ role: "user", content: "Our summer sale starts" }];
const asked = { model: MODEL, messages, user: UNIT };
const schema = {
  type: "object",
  properties: { name: { type: "string" }, age: { type: "integer" } },
};

async function streamed() {
  let text = "";
  for await (const chunk of await client.chat.completions.create({ ...asked, stream: true })) {
    text += chunk.choices[0]?.delta?.content ?? "";
  }
  return text;
}

async function tools() {
  const parameters = { type: "object", properties: { city: { type: "string" } } };
  const tool = { type: "function", function: { name: "weather", parameters } };
  const runner = client.chat.completions.stream({ ...asked, tools: [tool] });
  const first = (await runner.finalChatCompletion()).choices[0].message;
  const call = first.tool_calls[0];
  const result = { role: "tool", tool_call_id: call.id, content: "mild" };
  const last = await client.chat.completions.create({
    ...asked,
    tools: [tool],
    messages: [...messages, { role: "assistant", tool_calls: first.tool_calls }, result],
  });
  const called = [call.function.name, JSON.parse(call.function.arguments)];
  return [...called, last.choices[0].message.content];
}

async function structured() {
  const json_schema = { name: "person", schema };
  const answer = await client.chat.completions.create({
    ...asked,
    response_format: { type: "json_schema", json_schema },
  });
  return JSON.parse(answer.choices[0].message.content);
}

async function status(model, content) {
  try {
    await client.chat.completions.create({ model, messages: [{ role: "user", content }], user: UNIT });
  } catch (error) {
    if (error instanceof OpenAI.APIError) return [error.status, error.code];
    throw error;
  }
  return [];
}

async function main() {
  const { data, response } = await client.chat.completions.create(asked).withResponse();
  const atTrainer = process.argv[3] === "trainer"; // which gives no receipts
  if (!atTrainer && response.headers.get("x-tuneproof-response") !== data.id) throw new Error("no receipt");
  return {
    completion: data.choices[0].message.content,
    stream: await streamed(),
    tools: await tools(),
    structured: await structured(),
    errors: [
      await status("tuneproof/poem", "hello"),
      await status(MODEL, "this is too long"),
      await status(MODEL, "in a hurry"),
    ],
  };
}

main().then((found) => console.log(JSON.stringify(found)));
