"""A small xDS server that knows nothing of meshes, in one variant of the protocol.

It says its port on its first line of output and what clients answer on the following ones, as JSON. A line of input is all
resources from then on: {"version": "1", "resources": [{"@type": ..., ...}]}.
"""

import json
import queue
import sys
import threading
from concurrent import futures

import grpc
from google.protobuf import any_pb2, json_format

# Everything that may stand in an `Any` must be known to write it.
from envoy.config.cluster.v3 import cluster_pb2
from envoy.config.endpoint.v3 import endpoint_pb2
from envoy.config.listener.v3 import listener_pb2
from envoy.config.route.v3 import route_pb2
from envoy.extensions.filters.http.router.v3 import router_pb2  # noqa: F401
from envoy.extensions.filters.network.http_connection_manager.v3 import http_connection_manager_pb2  # noqa: F401
from envoy.service.discovery.v3 import ads_pb2_grpc, discovery_pb2

KINDS = [cluster_pb2.Cluster, endpoint_pb2.ClusterLoadAssignment, listener_pb2.Listener, route_pb2.RouteConfiguration]
WILDCARD = {"Cluster", "Listener"}

lock = threading.Lock()
world = {"version": "0", "by_type": {}}
streams = []


def say(**words):
    with lock:
        print(json.dumps(words), flush=True)


def read(line):
    told = json.loads(line)
    by_type = {}
    for resource in told["resources"]:
        message = json_format.ParseDict(resource, any_pb2.Any())
        kind = next(kind for kind in KINDS if message.type_url.endswith("/" + kind.DESCRIPTOR.full_name))
        inner = kind()
        message.Unpack(inner)
        by_type.setdefault(message.type_url, {})[getattr(inner, "name", "") or inner.cluster_name] = message
    with lock:
        world.update(version=told["version"], by_type=by_type)
    for one in list(streams):
        one.put("world")


class Server(ads_pb2_grpc.AggregatedDiscoveryServiceServicer):
    def __init__(self, variant):
        if variant == "delta":
            self.DeltaAggregatedResources = self.delta
        else:
            self.StreamAggregatedResources = self.whole

    def events(self, requests):
        """Requests and changes of the world in one line."""
        line = queue.Queue()
        streams.append(line)

        def pump():
            try:
                for request in requests:
                    line.put(request)
            except Exception:
                pass
            line.put(None)

        threading.Thread(target=pump, daemon=True).start()
        while (event := line.get()) is not None:
            yield event
        streams.remove(line)

    def heard(self, request):
        if request.response_nonce:
            refused = request.error_detail.message if request.HasField("error_detail") else ""
            say(type=request.type_url.rsplit(".", 1)[1], nonce=request.response_nonce, refused=refused)

    def whole(self, requests, context):
        asked, sent, number = {}, {}, 0
        for event in self.events(requests):
            if event != "world":
                self.heard(event)
                asked[event.type_url] = list(event.resource_names)
            for url, names in asked.items():
                there = world["by_type"].get(url, {})
                all_of_them = url.rsplit(".", 1)[1] in WILDCARD and not names
                chosen = {name: there[name] for name in there if all_of_them or name in names}
                if sent.get(url) == chosen or (not chosen and url not in sent):
                    continue
                number += 1
                sent[url] = chosen
                yield discovery_pb2.DiscoveryResponse(
                    version_info=world["version"], type_url=url, nonce=str(number), resources=chosen.values()
                )

    def delta(self, requests, context):
        asked, sent, number = {}, {}, 0
        for event in self.events(requests):
            if event != "world":
                self.heard(event)
                names = asked.setdefault(event.type_url, set())
                names |= set(event.resource_names_subscribe)
                names -= set(event.resource_names_unsubscribe)
            for url, names in asked.items():
                there = world["by_type"].get(url, {})
                all_of_them = url.rsplit(".", 1)[1] in WILDCARD
                chosen = {name: there[name] for name in there if all_of_them or name in names}
                before = sent.setdefault(url, {})
                new = [name for name in chosen if before.get(name) != chosen[name]]
                gone = [name for name in before if name not in chosen]
                if not new and not gone:
                    continue
                number += 1
                sent[url] = chosen
                yield discovery_pb2.DeltaDiscoveryResponse(
                    system_version_info=world["version"],
                    type_url=url,
                    nonce=str(number),
                    removed_resources=gone,
                    resources=[
                        discovery_pb2.Resource(name=name, version=world["version"], resource=chosen[name]) for name in new
                    ],
                )


server = grpc.server(futures.ThreadPoolExecutor(8))
ads_pb2_grpc.add_AggregatedDiscoveryServiceServicer_to_server(Server(sys.argv[1]), server)
port = server.add_insecure_port("127.0.0.1:0")
server.start()
say(port=port)
for line in sys.stdin:
    read(line)
