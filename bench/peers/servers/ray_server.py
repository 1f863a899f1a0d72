"""Ray Serve: ``python ray_server.py``. Raw bytes over HTTP, with a replica for each core.

``RAY_SERVE_THROUGHPUT_OPTIMIZED=1`` in the environment turns on what its performance guide recommends for throughput.
"""

import signal

import ray
from network import PORT, REPLICAS, Network
from ray import serve
from starlette.requests import Request
from starlette.responses import Response


@serve.deployment(num_replicas=REPLICAS, ray_actor_options={"num_cpus": 1})
class UNet:
    def __init__(self) -> None:
        self._network = Network()

    async def __call__(self, request: Request) -> Response:
        return Response(self._network(await request.body()), media_type="application/octet-stream")


if __name__ == "__main__":
    ray.init(num_cpus=REPLICAS, include_dashboard=False, logging_level="warning")
    serve.start(http_options={"host": "127.0.0.1", "port": PORT})
    serve.run(UNet.bind(), route_prefix="/predict")
    signal.sigwait([signal.SIGTERM])
    serve.shutdown()
    ray.shutdown()
