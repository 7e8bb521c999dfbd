"""Errors as OpenAI's API writes them: a status, one sentence, the parameter that it is about."""

from typing import Any

NAMES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    408: "request_timeout",
    409: "conflict_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "service_unavailable",
}


class ApiError(Exception):
    """What is answered instead of what was asked for."""

    def __init__(
        self, status: int, message: str, *, param: str | None = None, code: str | None = None, retry: int | None = None
    ) -> None:
        """`retry`: seconds after which it may work."""
        super().__init__(message)
        self.status, self.message, self.param, self.code, self.retry = status, message, param, code, retry

    def body(self) -> dict[str, Any]:
        """The JSON of the answer."""
        return error_body(self.status, self.message, self.param, self.code)

    def headers(self) -> dict[str, str]:
        """Beside it."""
        headers = {} if self.retry is None else {"retry-after": str(self.retry)}
        return headers | ({"www-authenticate": "Bearer"} if self.status == 401 else {})


def error_body(status: int, message: str, param: str | None = None, code: str | None = None) -> dict[str, Any]:
    """`{"error": …}`; the message becomes one line of at most 500 characters."""
    line = " ".join(message.split())
    line = line if len(line) <= 500 else line[:499] + "…"
    name = NAMES.get(status, "server_error" if status >= 500 else "invalid_request_error")
    return {"error": {"message": line, "type": name, "param": param, "code": code}}


def invalid(error: dict[str, Any]) -> tuple[str, str | None]:
    """The sentence about one finding of pydantic's, and the parameter."""
    place = [str(part) for part in error.get("loc", ()) if part != "body"]
    kind, said, value = error.get("type", ""), str(error.get("msg", "wrong value")), error.get("input")
    if kind == "json_invalid":
        return f"the body is not valid JSON: {error.get('ctx', {}).get('error', said)}", None
    if not place:
        return ("the body must be a JSON object", None) if kind != "value_error" else (_plain(said), None)
    name = place[0]
    where = ".".join(part for part in place if "[" not in part and not part.startswith(("function-", "constrained-")))
    if kind == "extra_forbidden":
        return f"{where} is not a field that this server knows", name
    if kind == "missing":
        return f"{where} is missing", name
    shown = repr(value) if isinstance(value, int | float | str | bool | None) else type(value).__name__
    shown = shown if len(shown) <= 60 else shown[:59] + "…"
    return f"{where} is {shown}: {_plain(said)[:1].lower()}{_plain(said)[1:]}", name


def _plain(said: str) -> str:
    return said.removeprefix("Value error, ")
