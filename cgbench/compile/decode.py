"""Make a deployment run its decode forwards through ``torch.compile``."""

import time
import warnings
from dataclasses import replace

import torch
from torch._dynamo.exc import TorchDynamoException

from cgbench.compile.layers import compile_forwards
from cgbench.engine.deployment import Deployment
from cgbench.engine.iteration import iteration
from cgbench.errors import UnsupportedModelError


@torch.inference_mode()
def compiled(deployment: Deployment) -> Deployment:
    """Compile the deployment's decode forwards, and return it with ``compile_s`` set.

    A step of one request and one of the largest batch, at every k, make torch compile. The model
    itself is changed, so capture the deployment that is returned. Raise ``UnsupportedModelError``
    if torch cannot compile the model's layers.
    """
    start = time.perf_counter()
    compile_forwards(deployment.spec.target, deployment.spec.head)
    try:
        with warnings.catch_warnings():
            # Inductor advises on TF32, which would change what float32 means here.
            warnings.simplefilter("ignore", UserWarning)
            for state in deployment.states.values():
                state.clear()
                for rows in (state.rows(1), state.full):
                    iteration(deployment.spec, rows)
    except TorchDynamoException as error:
        first_line = str(error).partition("\n")[0]
        raise UnsupportedModelError(
            f"--compile default: {deployment.model.label} cannot be compiled ({first_line}). "
            "Use --compile off"
        ) from error
    return replace(deployment, compile_s=time.perf_counter() - start)
