"""Which stages each service runs (ADR 2).

A service imports only the packages of its own stages, which saves time and memory when it starts.
"""

from __future__ import annotations

from collections.abc import Callable

from gliaflow_proto.messages import MAX_SHARDS
from gliaflow_runtime.broker.interface import Broker
from gliaflow_runtime.bundle.load import Bundle
from gliaflow_runtime.errors import UsageError
from gliaflow_runtime.settings import Settings
from gliaflow_runtime.stage import Stage

MakeStage = Callable[[Broker], Stage]  # the preprocessor reads uploads, so a stage gets the connection of its worker


def _preprocessor(bundle: Bundle, settings: Settings) -> list[MakeStage]:
    from gliaflow_preprocessor.preprocessor import Preprocessor

    return [lambda broker: Preprocessor(bundle, broker, settings.roots, shards=settings.assembler_shards)]


def _extractor(bundle: Bundle, settings: Settings) -> list[MakeStage]:
    from gliaflow_extractor.extractor import Extractor, UNetSession

    unet = UNetSession(bundle, batch=settings.batch, device=settings.device, threads=settings.threads)
    return [lambda _: Extractor(bundle, unet)]


def _generator(bundle: Bundle, settings: Settings) -> list[MakeStage]:
    from gliaflow_generator.generator import Balancer, Generator
    from gliaflow_generator.synthesis import Synthesizer

    synthesizer = Synthesizer(bundle, settings.generator, device=settings.device, threads=settings.threads)
    stages: list[MakeStage] = [lambda _: Generator(bundle, synthesizer)]
    if settings.balance_share:
        stages.append(lambda _: Balancer(bundle, synthesizer, share=settings.balance_share, seed=settings.seed))
    return stages


def _classifier(bundle: Bundle, settings: Settings) -> list[MakeStage]:
    from gliaflow_classifier.assembler import Assembler
    from gliaflow_classifier.grader import Grader
    from gliaflow_classifier.shares import Shares

    grader = Grader(bundle, device=settings.device, threads=settings.threads)
    shares = Shares(settings.assembler_shards)
    # on RabbitMQ, classifiers read all shards: scans of an earlier number may still be on their way
    shards = settings.assembler_shards if settings.broker.startswith("memory:") else MAX_SHARDS

    def assembler(shard: int) -> MakeStage:
        return lambda _: Assembler(bundle, timeout_s=settings.assembly_timeout_s, shard=shard, shares=shares)

    return [lambda _: grader, *map(assembler, range(shards))]


def _trainer(bundle: Bundle, settings: Settings) -> list[MakeStage]:
    from gliaflow_store.part_file import FeatureOrigin
    from gliaflow_store.recorder import Recorder
    from gliaflow_trainer.service import require_own

    if settings.device not in ("cpu", "cuda"):
        raise UsageError(f"device {settings.device}: the trainer fits with torch; give it cpu or cuda")
    settings.store.mkdir(0o700, parents=True, exist_ok=True)  # it has the names of patients
    require_own(bundle, settings.store)
    origin = FeatureOrigin(bundle.id, bundle.tap, bundle.tap_shape)
    keep_free = int(settings.store_free_gib * 2**30)
    return [lambda _: Recorder(settings.store, origin, bundle.manifest.classes, keep_free)]


PREPROCESSOR = "preprocessor"
TRAINER = "trainer"
SERVICES: dict[str, Callable[[Bundle, Settings], list[MakeStage]]] = {
    PREPROCESSOR: _preprocessor,
    "extractor": _extractor,
    "generator": _generator,
    "classifier": _classifier,
    TRAINER: _trainer,
}
PIPELINE = tuple(name for name in SERVICES if name != TRAINER)
"""The services that answer scans and requests. The trainer learns beside them."""
RUN_PLUGINS = (PREPROCESSOR, TRAINER)
"""The services that run the code of plugins."""
