"""A gRPC client that takes its configuration over xDS. A line of input is a number of calls; the answers are counted."""

import collections
import json
import sys

import grpc
import grpc.experimental

target = "xds:///" + sys.argv[1]
if "tls" in sys.argv:
    # What the server of the configuration says, else none.
    channel = grpc.secure_channel(target, grpc.xds_channel_credentials(grpc.experimental.insecure_channel_credentials()))
else:
    channel = grpc.insecure_channel(target)
call = channel.unary_unary("/echo.Echo/Unary", request_serializer=bytes, response_deserializer=bytes)
for line in sys.stdin:
    counts = collections.Counter()
    for _ in range(int(line)):
        try:
            counts[call(b"hello", timeout=5).decode()] += 1
        except grpc.RpcError as error:
            counts[f"{error.code().name}: {error.details()}"] += 1
    print(json.dumps(counts), flush=True)
