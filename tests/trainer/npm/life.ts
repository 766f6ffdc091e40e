// The whole life of a fine-tune through the official package, in its own types.
//
//     node dist/life.js BASE_URL MODEL SMALL_FILE LARGE_FILE
//
// Ends with an error where the server does not do what the package's users rely on. Prints what
// the server sent, one JSON object a line, for the check against the types.

import assert from "node:assert/strict";
import { createReadStream, readFileSync } from "node:fs";
import OpenAI, { NotFoundError, BadRequestError, toFile } from "openai";
import type { Seen } from "./complete.js";

type Job = OpenAI.FineTuning.Jobs.FineTuningJob;
type Status = Job["status"] | "pausing" | "paused";

const [baseURL, model, small, large] = process.argv.slice(2) as [string, string, string, string];
const client = new OpenAI({ baseURL, apiKey: "any", maxRetries: 0 });
const jobs = client.fineTuning.jobs;
const ENDED: Status[] = ["succeeded", "failed", "cancelled"];

function saw(type: keyof Seen, value: unknown): void {
  console.log(JSON.stringify({ type, value }));
}

async function reached(id: string, ...states: Status[]): Promise<Job> {
  const deadline = Date.now() + 60_000;
  for (;;) {
    const job = await jobs.retrieve(id);
    if (states.includes(job.status)) return job;
    const wrong = ENDED.includes(job.status) || Date.now() > deadline;
    assert.ok(!wrong, `${id} is ${job.status}, not ${states.join()}: ${JSON.stringify(job.error)}`);
    await new Promise((resolve) => setTimeout(resolve, 10));
  }
}

async function upload(): Promise<string> {
  const file = await client.files.create({ file: createReadStream(small), purpose: "fine-tune" });
  saw("File", file);
  assert.equal(file.bytes, readFileSync(small).length);
  assert.deepEqual(await client.files.retrieve(file.id), file);
  const listed = [];
  for await (const one of client.files.list({ purpose: "fine-tune", limit: 1 })) listed.push(one.id);
  assert.ok(listed.includes(file.id));
  const content = await (await client.files.content(file.id)).text();
  assert.equal(content, readFileSync(small, "utf8"));
  return file.id;
}

async function uploadInParts(): Promise<string> {
  const content = readFileSync(large);
  const made = await client.uploads.create({
    bytes: content.length,
    filename: "large.jsonl",
    mime_type: "application/jsonl",
    purpose: "fine-tune",
  });
  saw("Upload", made);
  const parts: string[] = [];
  const size = Math.ceil(content.length / 3);
  for (let at = 0; at < content.length; at += size) {
    const data = await toFile(content.subarray(at, at + size), "part");
    const part = await client.uploads.parts.create(made.id, { data });
    saw("UploadPart", part);
    parts.push(part.id);
  }
  const done = await client.uploads.complete(made.id, { part_ids: parts });
  saw("Upload", done);
  assert.equal(done.status, "completed");
  assert.ok(done.file);
  const given = { bytes: 5, filename: "x", mime_type: "text/plain", purpose: "fine-tune" } as const;
  const cancelled = await client.uploads.cancel((await client.uploads.create(given)).id);
  saw("Upload", cancelled);
  assert.equal(cancelled.status, "cancelled");
  return done.file.id;
}

async function train(training: string, validation: string): Promise<Job> {
  const begun = await jobs.create({
    model,
    training_file: training,
    validation_file: validation,
    suffix: "from-node",
    seed: 7,
    metadata: { run: "node" },
    method: { type: "supervised", supervised: { hyperparameters: { n_epochs: 2 } } },
  });
  saw("Job", begun);
  assert.equal(begun.status, "validating_files");
  const job = await reached(begun.id, "succeeded");
  saw("Job", job);
  assert.match(job.fine_tuned_model ?? "", /^ft:.*:from-node:/);
  assert.equal(job.hyperparameters.n_epochs, 2);
  const found = await jobs.list({ metadata: { run: "node" } });
  assert.deepEqual(found.data.map((one) => one.id), [job.id]);
  return job;
}

async function eventsAndCheckpoints(job: Job): Promise<void> {
  const events = [];
  for await (const event of jobs.listEvents(job.id, { limit: 7 })) events.push(event);
  events.forEach((event) => saw("Event", event));
  assert.equal(new Set(events.map((event) => event.id)).size, events.length);
  assert.ok(events.some((event) => event.type === "metrics"));
  const checkpoints = [];
  for await (const one of jobs.checkpoints.list(job.id)) checkpoints.push(one);
  checkpoints.forEach((one) => saw("Checkpoint", one));
  assert.equal(checkpoints[0]?.fine_tuned_model_checkpoint, job.fine_tuned_model);
  assert.match(checkpoints[1]?.fine_tuned_model_checkpoint ?? "", /:ckpt-step-\d+$/);
}

async function answers(name: string): Promise<void> {
  const messages = [{ role: "user", content: "night trains" }] as const;
  const asked = { model: name, messages: [...messages], seed: 1, logprobs: true, top_logprobs: 2 };
  const whole = await client.chat.completions.create(asked);
  saw("Completion", whole);
  const text = whole.choices[0]?.message.content ?? "";
  assert.ok(text.length > 0);
  const stream = await client.chat.completions.create({
    ...asked,
    stream: true,
    stream_options: { include_usage: true },
  });
  let said = "";
  let tokens = 0;
  let usage;
  for await (const chunk of stream) {
    saw("Chunk", chunk);
    said += chunk.choices[0]?.delta.content ?? "";
    tokens += chunk.choices[0]?.logprobs?.content?.length ?? 0;
    usage = chunk.usage ?? usage;
  }
  assert.equal(said, text);
  assert.deepEqual(usage, whole.usage);
  assert.equal(tokens, whole.choices[0]?.logprobs?.content?.length);
}

async function leavesAStream(name: string): Promise<void> {
  const stream = await client.chat.completions.create({
    model: name,
    messages: [{ role: "user", content: "night trains" }],
    stream: true,
  });
  for await (const _ of stream) break;
  assert.ok(stream.controller.signal.aborted);
}

async function models(name: string): Promise<void> {
  const listed = [];
  for await (const one of client.models.list()) listed.push(one);
  listed.forEach((one) => saw("Model", one));
  assert.ok(listed.some((one) => one.id === name));
  saw("Model", await client.models.retrieve(name));
}

async function pauseResumeCancel(training: string): Promise<void> {
  const paused = await jobs.create({ model, training_file: training });
  await reached(paused.id, "running");
  assert.ok(["pausing", "paused"].includes((await jobs.pause(paused.id)).status as Status));
  await reached(paused.id, "paused");
  assert.equal((await jobs.resume(paused.id)).status, "queued");
  await reached(paused.id, "running");
  const cancelled = await jobs.cancel(paused.id);
  saw("Job", cancelled);
  assert.equal(cancelled.status, "cancelled");
  await assert.rejects(jobs.cancel(paused.id), BadRequestError);
}

async function failure(): Promise<void> {
  const file = await toFile(Buffer.from('{"messages": []}\n'), "bad.jsonl");
  const bad = await client.files.create({ file, purpose: "fine-tune" });
  const job = await reached((await jobs.create({ model, training_file: bad.id })).id, "failed");
  saw("FailedJob", job);
  assert.equal(job.error?.code, "invalid_training_file");
}

async function removal(fileId: string, name: string): Promise<void> {
  const deleted = await client.models.delete(name);
  saw("ModelDeleted", deleted);
  assert.ok(deleted.deleted);
  await assert.rejects(client.models.retrieve(name), (error) => {
    assert.ok(error instanceof NotFoundError);
    assert.equal(error.code, "model_not_found");
    assert.match(error.requestID ?? "", /^req_/);
    return true;
  });
  saw("FileDeleted", await client.files.delete(fileId));
  await assert.rejects(client.files.retrieve(fileId), NotFoundError);
  await assert.rejects(client.embeddings.create({ model, input: "x" }), BadRequestError);
}

const training = await upload();
const big = await uploadInParts();
const job = await train(training, training);
const name = job.fine_tuned_model;
assert.ok(name);
await eventsAndCheckpoints(job);
await models(name);
await answers(name);
await leavesAStream(name);
await pauseResumeCancel(big);
await failure();
await removal(training, name);
