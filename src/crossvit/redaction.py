"""Keeps keys and passwords out of what is written: configs, logs, provenance, messages.

A secret is what looks like one by its place: the value of a key or an environment variable with such a name, the password or the signature
in an address, what a command is given as a password. What looks like none is not found: no secret belongs into a config.
"""

import logging
import os
import re

HIDDEN = "REDACTED"  # a plain word, which yaml, json, a shell and Hydra all read as it is
_NAME = (
    r"(?:(?:api|access|private|encryption|signing|wandb|ssh)[_-]?key(?:[_-]?id)?|secret|passwd|password|credentials?"
    r"|(?:auth|access|api|hf|hub|git(?:hub|lab)|refresh|session|security)[_-]?token)"
)
_QUERY = r"(?:x-amz-[\w-]*(?:signature|credential|token)|x-goog-[\w-]*(?:signature|credential)|signature|sig|token|key)"
_VALUE = r"(?:\"[^\"\n]*\"|'(?:[^'\n]|'')*'|[^\s,'\"}\])&]+)"
_RULES = [
    # scheme://user:password@host, not host:port/path@2 (nor a password that begins like a port); as a path it has lost a slash
    (r"(\w:/{1,2}[^/\s:@'\"]*:)(?!\d{1,5}/)[^\s'\"]+(?=@)", r"\1"),
    # ?X-Amz-Signature=...
    (rf"([?&]{_QUERY}=)[^&\s'\"]+", r"\1"),
    # Authorization: Bearer ...
    (r"(\bauthorization:\s*(?:(?:bearer|basic|token)\s+)?)[^\s'\"]+", r"\1"),
    (r"(\bbearer\s+)[\w.~+/=-]{8,}", r"\1"),
    # curl -u user:password
    (r"(\s(?:-u|--user|--proxy-user)[\s=]+['\"]?[^\s:'\"]+:)[^\s'\"]+", r"\1"),
    # --password ...
    (rf"(\s--?[\w-]*{_NAME}\s+)[^\s'\"]+", r"\1"),
    # api_key: ..., +data.password=..., "secret": "..."
    (rf"([\w.-]*{_NAME}['\"]?\s*[:=]\s*)(?!null\b|{HIDDEN}){_VALUE}", r"\1"),
]
_RULES = [(re.compile(pattern, re.IGNORECASE), f"{kept}{HIDDEN}") for pattern, kept in _RULES]
_VARIABLE = re.compile(r"(?:^|_)(?:API_?KEY|KEY|TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIALS?)(?:_|$)")
_SHORTEST = 8  # of a variable's value: a shorter one would be found in words


def redact(text: str) -> str:
    """`text` with `REDACTED` in the place of each secret."""
    for name, value in os.environ.items():
        if len(value) >= _SHORTEST and value in text and _VARIABLE.search(name.upper()):
            text = text.replace(value, HIDDEN)
    for pattern, replacement in _RULES:
        text = pattern.sub(replacement, text)
    return text


class RedactingFormatter(logging.Formatter):
    """A formatter of log lines; tracebacks are searched as well."""

    def format(self, record: logging.LogRecord) -> str:
        return redact(super().format(record))
