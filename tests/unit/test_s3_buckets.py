"""Buckets over HTTP: the headers that only they know."""

from tests.kit.s3 import call, serving


async def test_a_bucket_takes_its_scheme_from_a_header() -> None:
    async with serving() as running:
        made = await call(running.port, "PUT", "/mirrored", headers={"x-holdfast-scheme": "mirror-3"})
        assert (made.status, made.headers["x-holdfast-scheme"]) == (200, "mirror-3")
        wrong = await call(running.port, "PUT", "/other-one", headers={"x-holdfast-scheme": "rs-99-1"})
        assert (wrong.status, wrong.code) == (400, "InvalidArgument")
        assert b"rs-K-M takes K from 2 to 16" in wrong.body


async def test_a_bucket_that_should_be_somebody_elses_is_denied() -> None:
    async with serving() as running:
        await running.objects.create_bucket("bucket", None)
        headers = {"x-amz-expected-bucket-owner": "111122223333"}
        for method, target in [("GET", "/bucket"), ("PUT", "/bucket/k"), ("DELETE", "/bucket/k")]:
            answer = await call(running.port, method, target, headers=headers)
            assert (answer.status, answer.code) == (403, "AccessDenied")
