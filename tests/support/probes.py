"""One token's forward through each kind of model on the meta device, once a session.

Every load of a checkpoint or preset asks it for shapes, and it took half of a tiny model's load. It
depends on classes and sizes alone, so models that share them share what it has shown. A load on
several ranks probes what each rank holds, which is never shared.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from typing import Any
from unittest import mock

from cgbench.models import skeleton
from cgbench.models.attention_hook import ShapeProbe
from cgbench.models.heads.head import DraftHead
from cgbench.models.target import Target


@contextmanager
def probed_once() -> Iterator[None]:
    """Skeletons of one kind have one probe meanwhile. What cannot be run fails each time."""
    real, seen = skeleton.probe_kv_shapes, dict[object, ShapeProbe]()

    def probe(target: Target, head: DraftHead | None, *, keeps_latents: bool = True) -> ShapeProbe:
        kind = target_kind(target), head_kind(head), keeps_latents
        if kind not in seen:
            seen[kind] = real(target, head, keeps_latents=keeps_latents)
        return deepcopy(seen[kind])

    with mock.patch.object(skeleton, "probe_kv_shapes", probe):
        yield


def target_kind(target: Target) -> object:
    config = json.dumps(target.config.to_dict(), sort_keys=True, default=str)
    return type(target.model), config, shapes_of(target.backbone)


def head_kind(head: DraftHead | None) -> object:
    if head is None:
        return None
    return type(head), repr(head.family), repr(getattr(head, "form", None)), shapes_of(head)


def shapes_of(module: Any) -> tuple[object, ...]:
    return tuple((name, type(each), each.shape) for name, each in module.named_parameters())
