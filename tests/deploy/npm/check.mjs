// Holds objects against the schemas of their operators: JSON lines {"place", "kind", "object"} come in,
// and of each that is refused a line goes out. `place` is the module that has the kind.
import { createInterface } from "node:readline";

let refused = 0;
for await (const line of createInterface({ input: process.stdin })) {
  const { place, kind, object } = JSON.parse(line);
  const Kind = (await import(place))[kind];
  try {
    new Kind(object).validate();
  } catch (error) {
    refused += 1;
    console.log(`${kind} ${object.metadata?.name}: ${error.message}`);
  }
}
process.exitCode = refused ? 1 : 0;
