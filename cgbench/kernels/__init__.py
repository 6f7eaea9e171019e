"""Kernels compute on tensors: each has a definition in torch, and some have a form in Triton."""
