//! Auto-converge: slowing the workload down step by step.
