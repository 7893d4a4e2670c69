"""A server that speaks etcd's protocol and answers what a test has it answer."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import grpc

from rdzv_etcd.wire import METHODS, message

Answer = Callable[[Any, Any], Any]
"""Takes a request and its context; a watch's returns an iterator."""


@dataclass
class WrongServer:
    """What it answers by method, and what it was asked."""

    answers: dict[str, Answer]
    asked: list[str] = field(default_factory=list)
    endpoint: str = ""

    def _handler(self, method: str, request: str, response: str) -> grpc.RpcMethodHandler[Any, Any]:
        def answer(question: Any, context: Any) -> Any:
            self.asked.append(method)
            return self.answers.get(method, lambda *_: message(response)())(question, context)

        kind: Any = grpc.unary_unary_rpc_method_handler
        if method == "Watch":
            kind = grpc.unary_stream_rpc_method_handler
        made: grpc.RpcMethodHandler[Any, Any] = kind(
            answer,
            request_deserializer=message(request).FromString,
            response_serializer=message(response).SerializeToString,
        )
        return made

    @contextlib.contextmanager
    def running(self) -> Iterator[WrongServer]:
        server = grpc.server(ThreadPoolExecutor(8))
        for service in {service for service, _, _ in METHODS.values()}:
            handlers = {
                method: self._handler(method, request, response)
                for method, (its, request, response) in METHODS.items()
                if its == service
            }
            name = f"etcdserverpb.{service}"
            server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(name, handlers),))
        self.endpoint = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
        server.start()
        try:
            yield self
        finally:
            server.stop(0).wait()


def refusing(code: grpc.StatusCode, details: str, times: int = 1_000_000) -> Answer:
    """An answer that is an error, so many times."""
    left = [times]

    def answer(question: Any, context: Any) -> Any:
        left[0] -= 1
        if left[0] >= 0:
            context.abort(code, details)
        # Whatever was asked, an empty answer of one field is one to all.
        return message("PutResponse")()

    return answer
