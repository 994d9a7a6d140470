"""Files that appear whole or not at all, and files that mean one thing to all who read them.

The twins of executorch_ops/trainer/files, which know nothing of what a file is for.
"""
