"""Kernels: those in Triton, and beside them what each computes, in torch. They take tensors."""
