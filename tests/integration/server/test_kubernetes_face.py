"""`KubernetesOptimizedPipeline` on an open App: its methods are the service's own parts."""

from __future__ import annotations

import pytest
from tests.first_users import EVALUATION_METRICS, EXAMPLE, METRICS, REST, differences
from tests.integration.server.conftest import Service

from tuneproof import KubernetesOptimizedPipeline
from tuneproof.cache import metrics_key
from tuneproof.errors import CircuitBreakerError, InputError, ProviderUnavailableError


@pytest.fixture
def pipeline(service: Service) -> KubernetesOptimizedPipeline:
    return KubernetesOptimizedPipeline(app=service.app)


async def test_it_collects_and_starts_training(pipeline: KubernetesOptimizedPipeline) -> None:
    data = await pipeline.collect_training_data_optimized(0.06, days_back=7)
    assert data["total_records"] == len(data["hook_examples"]) + len(data["body_examples"]) > 0
    assert differences(EXAMPLE, data["body_examples"][0], whole=True) == []
    started = await pipeline.start_fine_tuning_with_circuit_breaker(data)
    assert differences(dict.fromkeys(REST["start.response"]["model_version"], str), started) == []
    assert started["status"] == "training"
    with pytest.raises(InputError, match="no batch"):
        await pipeline.start_fine_tuning_with_circuit_breaker({"hook_examples": []})


async def test_a_provider_that_keeps_failing_is_left_alone(
    service: Service, pipeline: KubernetesOptimizedPipeline
) -> None:
    data = await pipeline.collect_training_data_optimized()
    provider = service.app.providers.given
    provider.raises["find_file"] = ProviderUnavailableError("down")  # type: ignore[union-attr]
    for _ in range(3):
        with pytest.raises(ProviderUnavailableError):
            await pipeline.start_fine_tuning_with_circuit_breaker(data)
    with pytest.raises(CircuitBreakerError):
        await pipeline.start_fine_tuning_with_circuit_breaker(data)
    assert pipeline.openai_circuit_breaker.state == "OPEN"


async def test_it_keeps_figures_under_the_documented_key(
    service: Service, pipeline: KubernetesOptimizedPipeline
) -> None:
    figures = dict.fromkeys(EVALUATION_METRICS, 1.0)
    await pipeline.cache_evaluation_metrics("candidate", "ab-test-20250102-001", figures)
    key = metrics_key("ab-test-20250102-001", "candidate", 0)
    assert await service.app.cache.get(key) == figures
    with pytest.raises(InputError, match="no arm"):
        await pipeline.cache_evaluation_metrics("gpt-4o", "ab-test-20250102-001", figures)


async def test_it_says_how_it_does(pipeline: KubernetesOptimizedPipeline) -> None:
    assert differences(REST["health.response"], await pipeline.health_check()) == []
    text = await pipeline.get_prometheus_metrics()
    assert all(f"# TYPE {name} " in text for name in METRICS)
