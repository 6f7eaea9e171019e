"""Try decode layers as one resident program a multiprocessor, beside a kernel a product."""
