"""How well, how surely: metrics, comparisons, samplers, ablations."""
