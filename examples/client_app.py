"""An application that lets TuneProof choose its model, and tells it what came of it.

It speaks to a running service, whose settings say that it asks the models of its tasks itself:

    printf '[tasks.%s]\\nserved_by = "application"\\n' hook body >> tuneproof.toml
    tuneproof serve
    python examples/client_app.py http://127.0.0.1:8686

A test of two models is declared first, so that there is something to choose; in a real loop a
run does that. No model is asked here: `answer` stands for your own call.
"""

import random
import sys
import time
import uuid

import httpx2

from tuneproof.client import Choice, Client


def declare_test(url: str) -> str:
    """Put half of the units on a candidate; the id of the test."""
    asked = {
        "baseline_model": {"model_id": "model-in-use"},
        "candidate_model": {"model_id": "model-candidate"},
        "traffic_split": 0.5,
        "duration_hours": 168,
    }
    declared = httpx2.post(f"{url}/evaluation/create-ab-test", json=asked).raise_for_status()
    return str(declared.json()["ab_test_id"])


def answer(choice: Choice, topic: str) -> str:
    """Your call of the model that was chosen."""
    return f"{choice.model} on {topic}"


def main(url: str) -> None:
    """Publish forty posts, measure them, and show what the service counted."""
    test = declare_test(url)
    served = {"model-in-use": 0, "model-candidate": 0}
    with Client(url) as client:
        for number in range(40):
            post = uuid.uuid4().hex
            choice = client.choose("hook", unit=post)  # in process, no network
            began = time.perf_counter()
            answer(choice, f"topic {number}")
            latency_ms = (time.perf_counter() - began) * 1000
            client.record(choice, latency_ms=latency_ms, tokens=80, cost_usd=0.0001)
            served[choice.model] += 1
            # In a real application the outcome comes hours or days later.
            client.outcome(subject=choice.subject, unit=post, value=random.uniform(0.02, 0.10))
        arrived = client.flush()
        status = client.status()
    print(f"test {test}: {served['model-in-use']} + {served['model-candidate']} posts served")
    print(f"all events arrived: {arrived}; sent {status.sent}, lost {status.lost}")
    seen = httpx2.get(f"{url}/events", params={"subject": test, "limit": 1000}).json()
    print(f"the service has {len(seen)} exposures")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:8686")
