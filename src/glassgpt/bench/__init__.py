"""How fast, against what the machine can do: training throughput, the cost of attention, and the measured peaks."""
