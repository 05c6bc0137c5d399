"""Everything the router itself reports to a client. Each error knows its HTTP status, OpenAI type and code.

RouterError
├── BadRequest            400  the message has no single meaning, or its JSON lacks what routing needs
├── Unauthorized          401  the key is missing or wrong
├── ModelNotFound         404  no replica serves this model; the text lists the models there are
├── PathNotFound          404  not one of the served paths
├── MethodNotAllowed      405  the path exists, the method does not
├── ReceiptTimeout        408  the request did not arrive in time
├── BodyTooLarge          413  more body than the router accepts
├── EncodingNotSupported  415  compressed request bodies are refused
├── ExpectationFailed     417  an Expect other than 100-continue
├── ReplicasFull          429  every replica has all that it takes, and the time or room to wait is used up
├── RateLimited           429  this key has used what it may ask
├── HeadTooLarge          431  too many or too long header lines
├── RequestQuarantined    500  replicas died with this very request; it is not tried again for a while
├── BadReply              502  a replica answered something that is not one HTTP reply
├── NoReplicaReady        503  the model is known, nobody can take the request now; come back later
├── RouterBusy            503  too many bytes of unfinished requests are in this router already
├── RouterDraining        503  this router is shutting down
├── ReplicaLost           503  the replica died before its first byte, retries are spent; in a stream: in band
├── ReplicaTimeout        504  the replica stayed silent for too long
└── VersionNotSupported   505  neither HTTP/1.0 nor HTTP/1.1

Replies of replicas, errors included, are passed on as they are and never become one of these.
"""

from __future__ import annotations

import msgspec


class RouterError(Exception):
    """Base of what the router reports; `retry_after_s` becomes a Retry-After header when it is set."""

    status = 500
    type = "server_error"
    code = "internal_error"
    retry_after_s: int | None = None
    headers: tuple[tuple[bytes, bytes], ...] = ()  # further header lines of the reply

    def __init__(
        self,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        retry_after_s: int | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        if code is not None:
            self.code = code
        if retry_after_s is not None:
            self.retry_after_s = retry_after_s

    def body(self) -> bytes:
        """The error in OpenAI's shape, as JSON."""
        fields = {"message": self.message, "type": self.type, "param": self.param, "code": self.code}
        return msgspec.json.encode({"error": fields})


class BadRequest(RouterError):
    status = 400
    type = "invalid_request_error"
    code = "bad_request"


class Unauthorized(RouterError):
    status = 401
    type = "authentication_error"
    code = "invalid_api_key"


class ModelNotFound(RouterError):
    status = 404
    type = "invalid_request_error"
    code = "model_not_found"


class PathNotFound(RouterError):
    status = 404
    type = "invalid_request_error"
    code = "path_not_found"


class MethodNotAllowed(RouterError):
    status = 405
    type = "invalid_request_error"
    code = "method_not_allowed"
    allow = "GET, HEAD"


class ReceiptTimeout(RouterError):
    status = 408
    type = "invalid_request_error"
    code = "request_timeout"


class BodyTooLarge(RouterError):
    status = 413
    type = "invalid_request_error"
    code = "body_too_large"


class EncodingNotSupported(RouterError):
    status = 415
    type = "invalid_request_error"
    code = "content_encoding_not_supported"


class ExpectationFailed(RouterError):
    status = 417
    type = "invalid_request_error"
    code = "expectation_failed"


class ReplicasFull(RouterError):
    status = 429
    type = "rate_limit_error"
    code = "queue_full"
    retry_after_s = 1


class RateLimited(RouterError):
    status = 429
    type = "rate_limit_error"
    code = "rate_limit_exceeded"


class HeadTooLarge(RouterError):
    status = 431
    type = "invalid_request_error"
    code = "headers_too_large"


class RequestQuarantined(RouterError):
    status = 500
    code = "request_quarantined"


class BadReply(RouterError):
    status = 502
    code = "bad_reply"


class NoReplicaReady(RouterError):
    status = 503
    code = "no_replica_ready"
    retry_after_s = 2


class RouterBusy(RouterError):
    status = 503
    code = "router_busy"
    retry_after_s = 1


class RouterDraining(RouterError):
    status = 503
    code = "draining"
    retry_after_s = 1


class ReplicaLost(RouterError):
    status = 503
    type = "replica_lost"
    code = "replica_lost"
    retry_after_s = 1


class ReplicaTimeout(RouterError):
    status = 504
    code = "replica_timeout"


class VersionNotSupported(RouterError):
    status = 505
    type = "invalid_request_error"
    code = "http_version_not_supported"
