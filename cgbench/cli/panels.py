"""Name the panels that ``--help`` sorts flags into."""

MODEL = "Model"
HEAD = "Draft head"
GRAPHS = "Graphs"
WORKLOAD = "Workload"
TIMING = "Timing"
OUTPUT = "Output"
