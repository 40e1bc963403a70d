"""gRPC's own library as a peer: `serve ADDRESS VERSION`, or `call TARGET`.

A server answers with its version. `Slow` answers after five seconds, `Flaky` only at the third try, by the count that
gRPC sends with a retry, `Sick` fails in v1, and `Seen` answers how many calls of `Late` have come. A caller reads one
JSON object per line (method, metadata, count, timeout) and answers each with counts by answer and by status.
"""

import collections
import json
import sys
import threading
from concurrent import futures

import grpc


class Greeter(grpc.GenericRpcHandler):
    def __init__(self, version):
        self.version = version.encode()
        self.late = 0

    def service(self, details):
        return grpc.unary_unary_rpc_method_handler(
            lambda request, context: self.answer(details.method, context)
        )

    def answer(self, method, context):
        if method.endswith("/Slow"):
            gone = threading.Event()
            context.add_callback(gone.set)
            gone.wait(5)
        if method.endswith("/Flaky"):
            metadata = dict(context.invocation_metadata())
            if int(metadata.get("grpc-previous-rpc-attempts", "0")) < 2:
                context.abort(grpc.StatusCode.UNAVAILABLE, "not yet")
        if method.endswith("/Sick") and self.version == b"v1":
            context.abort(grpc.StatusCode.INTERNAL, "out of order")
        if method.endswith("/Late"):
            self.late += 1
        if method.endswith("/Seen"):
            return str(self.late).encode()
        return self.version


def serve(address, version):
    server = grpc.server(futures.ThreadPoolExecutor(8), handlers=[Greeter(version)])
    if server.add_insecure_port(address) == 0:
        sys.exit(f"cannot listen at {address}")
    server.start()
    print("up", flush=True)
    server.wait_for_termination()


def call(target):
    with grpc.insecure_channel(target) as channel:
        for line in sys.stdin:
            wanted = json.loads(line)
            method = channel.unary_unary("/test.Greeter/" + wanted["method"])
            answers = collections.Counter()
            codes = collections.Counter()
            for _ in range(wanted["count"]):
                try:
                    metadata = tuple(wanted.get("metadata", {}).items())
                    timeout = wanted.get("timeout", 20)
                    answer = method(b"", metadata=metadata, timeout=timeout, wait_for_ready=True)
                    answers[answer.decode()] += 1
                    codes["OK"] += 1
                except grpc.RpcError as error:
                    codes[error.code().name] += 1
            print(json.dumps({"answers": answers, "codes": codes}), flush=True)


if __name__ == "__main__":
    {"serve": serve, "call": call}[sys.argv[1]](*sys.argv[2:])
