"""Read the line that a user launches an engine with, as a request to the planner.

``read_launch("vllm serve M --max-num-seqs 200 ..", None, None)`` is the whole interface. Every
option is read as the engine's own parser reads it. Options that are not understood are listed.
"""

from cgbench.planning.launch_lines.launch_request import Launch, read_launch

__all__ = ["Launch", "read_launch"]
