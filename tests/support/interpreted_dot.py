"""Products of bfloat16 in Triton's interpreter, which multiplies their bits as whole numbers."""

import numpy as np
import triton.language as tl
from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

_create_dot = InterpreterBuilder.create_dot


def mend() -> None:
    """From now on their values are multiplied, in float32, which holds each product."""

    def create_dot(
        self: InterpreterBuilder, a: TensorHandle, b: TensorHandle, *others: object
    ) -> TensorHandle:
        return _create_dot(self, _widened(a), _widened(b), *others)

    InterpreterBuilder.create_dot = create_dot


def _widened(operand: TensorHandle) -> TensorHandle:
    if operand.dtype.scalar != tl.bfloat16:
        return operand
    return TensorHandle((operand.data.astype(np.uint32) << 16).view(np.float32), tl.float32)
