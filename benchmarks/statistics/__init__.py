"""Is the noise random? Its words through dieharder, its values through tests of their own, its names for
collisions: `python -m benchmarks.statistics [--json FILE] [--quick] [--orders ORDER ...]`.
"""
