"""Plan, capture and time CUDA graphs for speculative decoding with MTP draft heads."""

__version__ = "0.1.0"
