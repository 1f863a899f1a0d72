"""BentoML: ``bentoml serve bentoml_service:UNet``.

An ASGI application in the service takes and returns raw bytes (BentoML's guide "Mount ASGI applications"). BentoML's
own type for arrays is JSON if it comes from outside, and its type for files is written to disk. Workers are processes
(its guide "Workers").
"""

import bentoml
from network import PORT, REPLICAS, Network
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route


async def predict(request: Request) -> Response:
    answer = await run_in_threadpool(request.app.state.network, await request.body())
    return Response(answer, media_type="application/octet-stream")


app = Starlette(routes=[Route("/predict", predict, methods=["POST"])])


@bentoml.service(
    workers=REPLICAS,
    traffic={"timeout": 600},
    http={"port": PORT},
    metrics={"enabled": False},
    logging={"access": {"enabled": False}},
)
@bentoml.asgi_app(app, path="/")
class UNet:
    def __init__(self) -> None:
        app.state.network = Network()
