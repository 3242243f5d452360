"""What is shown holds no secret, and nothing that a terminal would obey."""

import pytest

from chatbot.errors import UsageError
from chatbot.safe_text import printable, redacted
from ray_jobs.measure.result import one_line

SECRET = "pl4nted+Secret"


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        (f"s3://AKIA:{SECRET}@bucket/results", "s3://***@bucket/results"),
        (f"no root 's3://AKIA:a/{SECRET}@bucket/r'", "no root 's3://***@bucket/r'"),
        (f"s3://AKIA:a@{SECRET}@bucket/r/cpu-b1@host", "s3://***@bucket/r/cpu-b1@host"),
        (f"spec s3:/AKIA:{SECRET}@bucket/r", "spec s3:/***@bucket/r"),  # as a path
        (f"http://{SECRET}@head:8265/", "http://***@head:8265/"),
        (f"user:{SECRET}@head:6379 is no cluster", "***@head:6379 is no cluster"),
        (f"s3://b/r?region=x&access_key=AKIA&secret_key={SECRET}&scheme=http",
         "s3://b/r?region=x&access_key=***&secret_key=***&scheme=http"),
        (f"/r?X-Amz-Credential={SECRET}&X-Amz-Signature={SECRET}", "/r?X-Amz-Credential=***&X-Amz-Signature=***"),
        (f"AWS_SECRET_ACCESS_KEY={SECRET} python", "AWS_SECRET_ACCESS_KEY=*** python"),
        (f"Authorization: Bearer {SECRET}", "Authorization: Bearer ***"),
    ],
)  # fmt: skip
def test_keys_and_passwords_are_hidden(said: str, shown: str) -> None:
    assert redacted(said) == shown


@pytest.mark.parametrize(
    "said",
    [
        "s3://bucket/results/run/samples/cpu-b1-p8-r10-t1@host.0001.parquet",
        "http://127.0.0.1:8265/cpu@host",
        "http://[::1]:8265/cpu@host",
        "--prompt-tokens=8 --reply-tokens=10 --stations hardware=x",
        "Intel(R) Xeon(R) CPU @ 2.70GHz, run r1: cpu-b1@host:cpu, 6 ms per token",
    ],
)
def test_nothing_else_is_hidden(said: str) -> None:
    assert redacted(said) == said


def test_a_secret_of_the_environment_is_hidden_wherever_it_stands(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_API_KEY", SECRET)
    monkeypatch.setenv("MY_NAME", "latency matrix")
    assert redacted(f"the server refused {SECRET} of latency matrix") == "the server refused *** of latency matrix"


def test_control_and_reordering_characters_are_shown_as_escapes() -> None:
    assert printable("a\x1b]0;owned\x07\n\u202eb\x9b2J\udc80é 你") == r"a\x1b]0;owned\x07\n\u202eb\x9b2J\udc80é 你"


def test_every_error_line_is_safe() -> None:
    said = f"no root s3://K:{SECRET}@b\x1b[2J"
    for line in (str(UsageError(said)), one_line(OSError(said))):
        assert SECRET not in line
        assert line.endswith(r"no root s3://***@b\x1b[2J")
