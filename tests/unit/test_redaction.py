"""No secret is written, and nothing else is touched."""

import logging

import pytest
from omegaconf import OmegaConf

from crossvit.config import chain_configs
from crossvit.redaction import RedactingFormatter, redact


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("data.root=https://me:hunter2@host/x", "data.root=https://me:REDACTED@host/x"),
        ("https:/me:hunter2@host/x is not a folder", "https:/me:REDACTED@host/x is not a folder"),
        ("https://me:p@ss/hunter2@host/x", "https://me:REDACTED@host/x"),
        ("s3://AKIA:hunt/er2@bucket/x", "s3://AKIA:REDACTED@bucket/x"),
        ("s3://AKIA:hunter2@bucket/x", "s3://AKIA:REDACTED@bucket/x"),
        ("https://b/x?X-Amz-Credential=hunter2&part=2", "https://b/x?X-Amz-Credential=REDACTED&part=2"),
        ("https://b/x.tar?sig=hunter2%2F&sv=1", "https://b/x.tar?sig=REDACTED&sv=1"),
        ("pipe:curl -u me:hunter2 https://h/x.tar", "pipe:curl -u me:REDACTED https://h/x.tar"),
        ("pipe:curl -H 'Authorization: Bearer hunter2.x'", "pipe:curl -H 'Authorization: Bearer REDACTED'"),
        ("s3cmd --secret_access_key hunter2 get", "s3cmd --secret_access_key REDACTED get"),
        ("AWS_SECRET_ACCESS_KEY=hunter2 aws s3 cp", "AWS_SECRET_ACCESS_KEY=REDACTED aws s3 cp"),
        ("+logger.wandb.api_key=hunter2", "+logger.wandb.api_key=REDACTED"),
        ("hub_token: hunter2", "hub_token: REDACTED"),
        ("data.private_key=hunter2", "data.private_key=REDACTED"),
        ("api_key: hunter2\nseed: 1", "api_key: REDACTED\nseed: 1"),
        ("password: 'it''s hunter2'", "password: REDACTED"),
        ('\'chain.coco=["+data.password=hunter2","seed=1"]\'', '\'chain.coco=["+data.password=REDACTED","seed=1"]\''),
    ],
)
def test_what_looks_like_a_secret(text, expected):
    assert redact(text) == expected
    assert redact(expected) == expected


@pytest.mark.parametrize(
    "text",
    [
        "tokenizer: crossvit\ntoken_mask: 3\nmax_tokens: 5\neot_token: 2",
        "https://host:8080/folder/x@y",
        "a/user@host: b",
        "secret: null",
        "s3: aws s3 cp {url} -",
        "objective.distill.weight=1",
        "-u me",
    ],
)
def test_what_looks_like_none(text):
    assert redact(text) == text


@pytest.mark.parametrize("name", ["WANDB_API_KEY", "HF_TOKEN", "AWS_SECRET_ACCESS_KEY", "DB_PASSWORD"])
def test_what_the_environment_calls_one_is_found_anywhere(monkeypatch, name):
    monkeypatch.setenv(name, "mark3r-of-a-secret")
    assert redact("x=mark3r-of-a-secret; y") == "x=REDACTED; y"


@pytest.mark.parametrize(
    ("name", "value"), [("KEYBOARD", "mark3r-of-a-layout"), ("MONKEY", "mark3r-of-one"), ("X_KEY", "a")]
)
def test_other_variables_are_left(monkeypatch, name, value):
    monkeypatch.setenv(name, value)
    assert redact(f"a {value}") == f"a {value}"


@pytest.mark.parametrize(
    "overrides", [["stage=vlr"], ["experiment=real_pretrained"], ["data=stream", "data.root=s3://b"]]
)
def test_configs_of_the_project_stay_as_they_are(overrides):
    for link in chain_configs(overrides):
        text = OmegaConf.to_yaml(link.cfg, resolve=True)
        assert redact(text) == text


def test_a_log_line_and_its_traceback():
    try:
        raise ValueError("https://me:hunter2@host")
    except ValueError:
        import sys

        record = logging.LogRecord("x", logging.INFO, "x", 1, "to %s", ("ftp://a:hunter2@b",), sys.exc_info())
    text = RedactingFormatter("%(message)s").format(record)
    assert "hunter2" not in text
    assert text.count("REDACTED") >= 2  # the line of source is shown as well
