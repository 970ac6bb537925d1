"""The id of a request is the balancer's word, and nobody else's."""

from collections.abc import Mapping

import pytest

from tests.kit.s3 import call, serving

SECRET = "what-the-nodes-know-it-by"
NAMED = "0123abcd-4567-4890-abcd-ef0123456789"


async def answered_under(headers: Mapping[str, str], secret: str = SECRET) -> str:
    """The id in the answer to a request with these headers."""
    async with serving(balancer_secret=secret) as running:
        answer = await call(running.port, "GET", "/", headers=headers)
        return answer.headers["x-amz-request-id"]


async def test_a_balancer_that_is_known_names_requests() -> None:
    told = {"holdfast-balancer": SECRET, "holdfast-request": NAMED, "x-envoy-attempt-count": "2"}
    assert await answered_under(told) == NAMED.replace("-", "")


@pytest.mark.parametrize(
    "told",
    [
        {"holdfast-request": NAMED, "x-envoy-attempt-count": "1"},
        {"holdfast-balancer": "", "holdfast-request": NAMED, "x-envoy-attempt-count": "1"},
        {"holdfast-balancer": SECRET + "x", "holdfast-request": NAMED, "x-envoy-attempt-count": "1"},
        {"holdfast-balancer": SECRET, "holdfast-request": "short", "x-envoy-attempt-count": "1"},
        {"holdfast-balancer": SECRET, "holdfast-request": NAMED.upper(), "x-envoy-attempt-count": "1"},
        {"holdfast-balancer": SECRET, "holdfast-request": NAMED, "x-envoy-attempt-count": "-1"},
        {"holdfast-balancer": SECRET, "holdfast-request": NAMED},
        {"holdfast-balancer": SECRET},
    ],
)
async def test_nobody_else_does(told: Mapping[str, str]) -> None:
    assert len(await answered_under(told)) == 16


async def test_without_a_secret_nobody_is_believed() -> None:
    told = {"holdfast-balancer": "", "holdfast-request": NAMED, "x-envoy-attempt-count": "1"}
    assert len(await answered_under(told, secret="")) == 16
