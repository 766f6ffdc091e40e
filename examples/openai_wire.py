"""The official OpenAI SDK against the self-hosted trainer: upload, fine-tune, ask.

Only `base_url` differs from what you would write for OpenAI. The trainer is started in this
process; `tuneproof-trainer serve` starts one of its own. Its engine imitates word sequences
(an n-gram model): the wire is the real one, the answers are not for users.

    python examples/openai_wire.py
"""

import asyncio
import io
import json
import tempfile
from pathlib import Path

from openai import AsyncOpenAI

from tuneproof_trainer.embedded import serve


def lines() -> bytes:
    """A training file: three hundred questions with the answers that we would like."""
    examples = [
        {
            "messages": [
                {"role": "user", "content": f"Announce release {i}"},
                {
                    "role": "assistant",
                    "content": f"Release {i} is out: faster, smaller, and {i % 9 + 1} bugs fewer.",
                },
            ]
        }
        for i in range(300)
    ]
    return "\n".join(json.dumps(example) for example in examples).encode()


async def main() -> None:
    """Fine-tune a model and ask it."""
    with tempfile.TemporaryDirectory() as directory:
        async with serve(Path(directory)) as trainer:
            client = AsyncOpenAI(base_url=trainer.base_url, api_key="any")
            file = await client.files.create(
                file=("releases.jsonl", io.BytesIO(lines())), purpose="fine-tune"
            )
            job = await client.fine_tuning.jobs.create(
                model="tuneproof-ngram-1", training_file=file.id, suffix="releases"
            )
            while job.status not in ("succeeded", "failed", "cancelled"):
                await asyncio.sleep(0.1)
                job = await client.fine_tuning.jobs.retrieve(job.id)
            print(f"{job.status}: {job.trained_tokens} tokens, {job.fine_tuned_model}")
            answer = await client.chat.completions.create(
                model=job.fine_tuned_model,
                messages=[{"role": "user", "content": "Announce release 301"}],
                seed=7,
            )
            print(answer.choices[0].message.content)
            await client.close()


if __name__ == "__main__":
    asyncio.run(main())
