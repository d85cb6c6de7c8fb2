import json
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from transferkit.redaction import SECRET_VARIABLES, is_redacted, redacted, show_traceback

TOKEN = "hf_" + "AbCd1234" * 4
SECRETS = (
    (f"401 for {TOKEN}", "401 for hf_REDACTED"),
    ("https://user:p@ss:w0rd@host/a.tar", "https://REDACTED@host/a.tar"),
    (
        "fsspec s3:/key:secret@bucket/a.tar",
        "fsspec s3:/REDACTED@bucket/a.tar",
    ),  # as a Path writes it
    ("https://h/a.tar?X-Amz-Signature=ab12&x=1", "https://h/a.tar?X-Amz-Signature=REDACTED&x=1"),
    (
        "https://h/a?a=1&amp;X-Goog-Credential=me%40x",
        "https://h/a?a=1&amp;X-Goog-Credential=REDACTED",
    ),
    ("https://h/a?token=ab&b=2", "https://h/a?token=REDACTED&b=2"),
    ("https://h/a?sv=1&sig=ab%2B=", "https://h/a?sv=1&sig=REDACTED"),
    ("invalid access_token=ghp_0123456789, sorry", "invalid access_token=REDACTED, sorry"),
    ("Authorization: Basic dXNlcjpwYXNz", "Authorization: Basic REDACTED"),
    ("{'Authorization': 'Bearer abc.def'}", "{'Authorization': 'Bearer REDACTED'}"),
    ('{"authorization": "abc"}', '{"authorization": "REDACTED"}'),
    ("sent Bearer " + "a1" * 10, "sent Bearer REDACTED"),
)
HARMLESS = (
    *("runs/hf_birds/a.png", "someone@example.org", "lr=0.1", "a token of it", "class=token"),
    *("https://huggingface.co/timm/resnet18", "s3://bucket/a@b/{0..3}.tar", "C:/a/@b"),
    *("tokens=12", "a bearer of news", "what?sign=minus", "10:30 a/b@c"),
)


@pytest.mark.parametrize(("text", "shown"), SECRETS)
def test_secrets_are_hidden_and_the_rest_stays(text: str, shown: str) -> None:
    assert redacted(text) == shown
    assert redacted(shown) == shown
    assert json.loads(redacted(json.dumps([text, "after"]))) == [shown, "after"]
    assert redacted(f"before\n{text}\nafter") == f"before\n{shown}\nafter"


@pytest.mark.parametrize("text", HARMLESS)
def test_what_is_no_secret_stays(text: str) -> None:
    assert redacted(text) == text


@pytest.mark.parametrize("variable", SECRET_VARIABLES)
def test_values_of_secret_variables_are_hidden(
    variable: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, "not-like-a-token-at-all")
    assert redacted("with 'not-like-a-token-at-all'") == "with 'REDACTED'"
    monkeypatch.setenv(variable, "short")
    assert redacted("a short word") == "a short word"


def test_an_address_that_lost_its_password_is_known() -> None:
    assert is_redacted(redacted("https://me:pw@host/a.tar"))
    assert is_redacted(redacted("https:/me:pw@host/a.tar"))
    assert not is_redacted("https://host/REDACTED/a.tar")


@given(st.lists(st.sampled_from(["://", "a@", ":/", "hf_", "x", "&token=", "bearer ", "\n", "="])))
def test_lines_stay_lines_and_once_is_enough(parts: list[str]) -> None:
    text = "".join(parts)
    assert redacted(text).count("\n") == text.count("\n")
    assert redacted(redacted(text)) == redacted(text)


@pytest.mark.parametrize(
    "part", ["ab:/", "a@", "hf_", "hf_a", "authorization", "authorization ", "bearer ", "token="]
)
def test_long_texts_take_no_time(part: str) -> None:
    """A quadratic pattern would take minutes for these."""
    assert redacted(redacted(part * 200_000)) == redacted(part * 200_000)


def test_tracebacks_hold_no_secret(capsys: pytest.CaptureFixture[str]) -> None:
    try:
        raise ValueError(f"no access to https://me:pw@host with {TOKEN} \ud800")
    except ValueError:
        show_traceback(*sys.exc_info())  # type: ignore[arg-type]
    told = capsys.readouterr().err
    assert "Traceback (most recent call last):" in told
    assert "no access to https://REDACTED@host with hf_REDACTED \\ud800" in told
    assert "pw" not in told
