"""Milvus engines for tests: milvus-lite's own servicer behind gRPC servers of this process, on loopback."""

import time
from collections.abc import Callable
from concurrent import futures
from pathlib import Path
from typing import Any

import grpc
from milvus_lite.adapter.grpc.servicer import MilvusServicer
from milvus_lite.db import MilvusLite
from pymilvus.grpc_gen import common_pb2, milvus_pb2_grpc

from rag.index.embed import embed
from rag.index.folder import Index
from rag.index.milvus_fill import fill
from rag.index.milvus_type import MilvusType
from rag.index.passages import PassageStore


class Engine:
    """A server over a folder, which can go away and come back at the same port.

    token: what it lets in, as a server with accounts; None: everybody. credentials: of TLS. servicer: another one.
    """

    def __init__(
        self,
        folder: Path,
        token: str | None = None,
        credentials: Any = None,
        servicer: Callable[[MilvusLite], Any] = MilvusServicer,
    ):
        self.folder, self.token, self.credentials, self.servicer = folder, token, credentials, servicer
        self.port = 0
        self.calls: list[str] = []
        self.start()

    @property
    def uri(self) -> str:
        return f"{'http' if self.credentials is None else 'https'}://localhost:{self.port}"

    def start(self) -> None:
        self.database = MilvusLite(str(self.folder))
        self.server = grpc.server(futures.ThreadPoolExecutor(4), interceptors=[_Door(self)])
        milvus_pb2_grpc.add_MilvusServiceServicer_to_server(self.servicer(self.database), self.server)
        address = f"127.0.0.1:{self.port}"
        if self.credentials is None:
            self.port = self.server.add_insecure_port(address)
        else:
            self.port = self.server.add_secure_port(address, self.credentials)
        self.server.start()

    def stop(self) -> None:
        self.server.stop(grace=0).wait()
        self.database.close()


class _Door(grpc.ServerInterceptor):
    """Counts calls, and lets in who has the token, as Milvus does: "authorization", in base64."""

    def __init__(self, engine: Engine):
        self.engine = engine

    def intercept_service(self, continuation, details):
        import base64

        self.engine.calls.append(details.method.rpartition("/")[2])
        wanted = self.engine.token
        if wanted is not None:
            given = dict(details.invocation_metadata).get("authorization", "")
            if given != base64.b64encode(wanted.encode()).decode():

                def refuse(request, context):
                    context.abort(
                        grpc.StatusCode.UNAUTHENTICATED, "auth check failure, please check the api key"
                    )

                return grpc.unary_unary_rpc_method_handler(refuse)
        return continuation(details)


class WithoutInnerProduct(MilvusServicer):
    """An engine that has Euclidean distance alone."""

    def CreateIndex(self, request, context):
        return common_pb2.Status(code=1100, reason="metric type IP is not supported: expected L2")


class Slow(MilvusServicer):
    """An engine whose searches take `seconds`, or until it is asked no more."""

    seconds = 0.0

    def Search(self, request, context):
        began = time.monotonic()
        while time.monotonic() - began < self.seconds and context.is_active():
            time.sleep(0.05)
        return super().Search(request, context)


def make_in(
    folder: Path,
    uri: str | None,
    passages: list,
    encode: Callable,
    encoder: Any,
    shard_size: int = 20,
    **settings: Any,
) -> Index:
    """An index folder whose vectors an engine searches."""
    store = PassageStore.write(passages, folder / "passages")
    embed(store, encode, folder, encoder, shard_size, batch_size=7, show_progress=False)
    fill(folder, MilvusType(uri, **settings), show_progress=False)
    return Index.open(folder)
