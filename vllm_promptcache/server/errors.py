"""Errors in the shape of OpenAI's API, as vLLM answers them."""

from __future__ import annotations

from fastapi.responses import JSONResponse
from pydantic import ValidationError
from vllm.entrypoints.serve.engine.protocol import ErrorInfo, ErrorResponse

from vllm_promptcache.errors import PMLError
from vllm_promptcache.frontend.errors import RefusedError

REFUSALS = (PMLError, RefusedError)


def error_response(error: PMLError | RefusedError) -> ErrorResponse:
    """vLLM's error object. Its own way of making one would take element paths for file paths and cut
    them out of the message."""
    kind, field = ("PMLError", "pml") if isinstance(error, PMLError) else (error.kind, error.field)
    return ErrorResponse(error=ErrorInfo(message=str(error), type=kind, param=field, code=error.status))


def json_error(error: PMLError | RefusedError) -> JSONResponse:
    """The same as an answer to a request."""
    return JSONResponse(error_response(error).model_dump(), status_code=error.status)


def wrong_body(error: ValidationError) -> RefusedError:
    """What pydantic found wrong with a body, one line each."""
    lines = [f"{'.'.join(map(str, e['loc'])) or 'body'}: {e['msg']}" for e in error.errors()]
    return RefusedError("\n".join(lines))
