"""What is refused although every document in it is right."""

from __future__ import annotations

BAD_REQUEST = 400
FORBIDDEN = 403
NOT_FOUND = 404
CONFLICT = 409
INSUFFICIENT_STORAGE = 507

_KINDS = {
    BAD_REQUEST: "BadRequestError",
    FORBIDDEN: "PermissionDeniedError",
    NOT_FOUND: "NotFoundError",
    CONFLICT: "ConflictError",
    INSUFFICIENT_STORAGE: "InsufficientStorageError",
}


class RefusedError(ValueError):
    """A request that is refused, with one sentence that says why.

    ``status`` is the HTTP status that fits and ``kind`` the error's type, as OpenAI's API calls it;
    ``field`` names the field of the request that is at fault, if one is.
    """

    def __init__(
        self, message: str, status: int = BAD_REQUEST, *, kind: str | None = None, field: str | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        self.kind = kind or _KINDS[status]
        self.field = field
