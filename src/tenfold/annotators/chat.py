"""A chat endpoint that the user names: one request at a time, nothing sent anywhere else, answers kept."""

from __future__ import annotations

import hashlib
import json
import os
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tenfold.errors import EndpointError, ParameterError

#: Before the second try; doubled for each one after.
WAIT_SECONDS = 1.0
#: What is worth another try: too many requests, or the server's own trouble.
_AGAIN = (408, 409, 425, 429, 500, 502, 503, 504)
_SHOWN = 200


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """Another address than the one that the user named gets neither genes nor key."""

    def redirect_request(self, *args: Any, **kwargs: Any) -> None:
        return None


@dataclass(frozen=True)
class Endpoint:
    """An OpenAI-compatible server: ``POST <base_url>/chat/completions``.

    Attributes
    ----------
    base_url
        Such as ``"http://localhost:11434/v1"``.
    model
        Name that the server knows.
    key_variable
        Environment variable with the key; empty where the server needs none. The key itself is kept nowhere.
    timeout
        Seconds to wait for an answer.
    retries
        Tries after the first where the server is busy, out of reach, or answers nonsense.
    cache
        Folder for answers by what was asked; ``None`` for none.
    """

    base_url: str
    model: str
    key_variable: str = ""
    timeout: float = 60.0
    retries: int = 2
    cache: str | None = None

    def __post_init__(self) -> None:
        if not self.base_url.startswith(("http://", "https://")):
            raise ParameterError(f"base_url='{self.base_url}' must begin with http:// or https://.")
        if {"@", "?"} & set(self.base_url):
            raise ParameterError(
                "base_url= is kept with results and must hold no secret: leave out what comes before '@' or after '?', "
                "and name the environment variable with the key: key_variable='MY_KEY'."
            )
        if not self.model:
            raise ParameterError("model= names the language model that the server is to use; it is empty.")

    def body(self, prompt: str, temperature: float, seed: int) -> dict[str, Any]:
        """Return what is sent."""
        messages = [{"role": "user", "content": prompt}]
        return {"model": self.model, "messages": messages, "temperature": temperature, "seed": seed}

    def kept(self, body: dict[str, Any]) -> str | None:
        """Return the answer that the cache has, or None."""
        path = self._path(body)
        return json.loads(path.read_text())["answer"] if path is not None and path.is_file() else None

    def keep(self, body: dict[str, Any], answer: str) -> None:
        """Put an answer into the cache."""
        path = self._path(body)
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps({"asked": body, "answer": answer}, indent=1))

    def _path(self, body: dict[str, Any]) -> Path | None:
        if self.cache is None:
            return None
        asked = json.dumps([self.base_url, body], sort_keys=True)
        return Path(self.cache) / f"{hashlib.sha256(asked.encode()).hexdigest()}.json"

    def send(self, body: dict[str, Any]) -> str:
        """Send a request and return the text of the answer.

        Raises
        ------
        EndpointError
            The key is missing or refused, the server cannot be reached in time, or its answer is none of a chat.
        """
        request = self._request(body)
        opener = urllib.request.build_opener(_NoRedirects)
        for trial in range(self.retries + 1):
            try:
                with opener.open(request, timeout=self.timeout) as response:
                    return self._text(response.read())
            except urllib.error.HTTPError as error:
                trouble, again = self._refusal(error), error.code in _AGAIN
            except (TimeoutError, OSError) as error:  # URLError is an OSError
                reason = getattr(error, "reason", error)
                late = isinstance(reason, TimeoutError)
                what = f"did not answer in {self.timeout:g} seconds" if late else f"cannot be reached ({reason})"
                trouble, again = f"'{self.base_url}' {what}.", True
            if not again or trial == self.retries:
                tries = f" ({trial + 1} tries)" if trial else ""
                raise EndpointError(f"{trouble}{tries} Without base_url= labels come from markers, offline.")
            time.sleep(WAIT_SECONDS * 2**trial)
        raise AssertionError  # the last trial returns or raises

    def _request(self, body: dict[str, Any]) -> urllib.request.Request:
        headers = {"Content-Type": "application/json"}
        if self.key_variable:
            key = os.environ.get(self.key_variable, "")
            if not key:
                raise EndpointError(
                    f"The environment variable '{self.key_variable}', which is to hold the key of '{self.base_url}', "
                    "is not set. Set it, or leave key_variable= out where the server needs no key."
                )
            headers["Authorization"] = f"Bearer {key}"
        url = f"{self.base_url.rstrip('/')}/chat/completions"
        return urllib.request.Request(url, json.dumps(body).encode(), headers, method="POST")

    def _refusal(self, error: urllib.error.HTTPError) -> str:
        if 300 <= error.code < 400:
            return f"'{self.base_url}' sends requests on to another address, which is not followed: give that one."
        said = error.read(_SHOWN).decode(errors="replace").strip()
        hint = ""
        if error.code in (401, 403):
            hint = " Name the environment variable with the key: key_variable='MY_KEY'." if not self.key_variable else (
                f" Is the key in '{self.key_variable}' right?"
            )  # fmt: skip
        elif error.code == 404:
            hint = " Is the model's name right, and does base_url end before '/chat/completions'?"
        return f"'{self.base_url}' refused with status {error.code}: {said}.{hint}"

    def _text(self, raw: bytes) -> str:
        try:
            text = json.loads(raw)["choices"][0]["message"]["content"]
        except (ValueError, KeyError, IndexError, TypeError):
            text = None
        if not isinstance(text, str):
            raise EndpointError(
                f"'{self.base_url}' did not answer like a chat (choices[0].message.content) but: "
                f"{raw[:_SHOWN].decode(errors='replace')}"
            )
        return text
