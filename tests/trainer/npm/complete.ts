// What each object of the wire must be: every field that the package's types name is there, with
// its type, at every depth. Fields beyond the types are allowed; fields of features that these
// models lack are left out here by name.

import type OpenAI from "openai";

type Jobs = OpenAI.FineTuning.Jobs.FineTuningJob;
type Chat = OpenAI.Chat.Completions.ChatCompletion;
type Chunk = OpenAI.Chat.Completions.ChatCompletionChunk;

/** `T` with nothing optional, whatever else there may be beside it. */
export type Complete<T> = T extends readonly (infer Item)[]
  ? Complete<Item>[]
  : T extends object
    ? { [Key in keyof T]-?: Complete<Exclude<T[Key], undefined>> } & { [other: string]: unknown }
    : T;

/** `Part` in place of the fields of the same names. */
type With<T, Part> = Omit<T, keyof Part> & Part;

// What a file does not have is absent, as the original's document says.
type FileObject = Omit<OpenAI.Files.FileObject, "expires_at" | "status_details">;
type Method = Pick<NonNullable<Jobs["method"]>, "type" | "supervised">;
type Message = Omit<Chat["choices"][number]["message"], "tool_calls" | "function_call" | "audio">;
type Choice = With<Chat["choices"][number], { message: Message }>;
// Each chunk brings a part of the message, so here alone fields may be absent.
type Delta = Partial<Pick<Chunk["choices"][number]["delta"], "role" | "content" | "refusal">>;
type ChunkChoice = Complete<Omit<Chunk["choices"][number], "delta">> & { delta: Delta };
type ChunkRest = Complete<Omit<Chunk, "choices" | "obfuscation">>;

export interface Seen {
  File: Complete<FileObject>;
  FileDeleted: Complete<OpenAI.Files.FileDeleted>;
  Upload: Complete<With<OpenAI.Uploads.Upload, { file: FileObject | null }>>;
  UploadPart: Complete<OpenAI.Uploads.UploadPart>;
  // `error` is null while nothing is wrong, as the original's document says.
  Job: Complete<With<Jobs, { error: null; method: Method }>>;
  FailedJob: Complete<With<Jobs, { error: NonNullable<Jobs["error"]>; method: Method }>>;
  Event: Complete<OpenAI.FineTuning.Jobs.FineTuningJobEvent>;
  Checkpoint: Complete<OpenAI.FineTuning.Jobs.FineTuningJobCheckpoint>;
  Model: Complete<OpenAI.Models.Model>;
  ModelDeleted: Complete<OpenAI.Models.ModelDeleted>;
  Completion: Complete<With<Chat, { choices: Choice[] }>>;
  Chunk: ChunkRest & { choices: ChunkChoice[] };
}
