"""LitServe: ``python litserve_server.py``.

The annotations of ``decode_request`` and ``encode_response`` say what travels, as for the typed requests in LitServe's
documentation: raw bytes both ways. Base64 in JSON, as in its examples, costs more.
"""

from typing import Annotated

import litserve as ls
from fastapi import Body, Response
from network import PORT, REPLICAS, Network


class UNet(ls.LitAPI):
    def setup(self, device: str) -> None:
        self._network = Network()

    def decode_request(self, request: Annotated[bytes, Body(media_type="application/octet-stream")]) -> bytes:
        return request

    def predict(self, x: bytes) -> bytes:
        return self._network(x)

    def encode_response(self, output: bytes) -> Response:
        return Response(output, media_type="application/octet-stream")


if __name__ == "__main__":
    # ZeroMQ between its processes, for large bodies; one process for HTTP leaves the cores to the network
    server = ls.LitServer(UNet(), accelerator="cpu", workers_per_device=REPLICAS, timeout=600, fast_queue=True)
    server.run(host="127.0.0.1", port=PORT, num_api_servers=1, generate_client_file=False, log_level="warning")
