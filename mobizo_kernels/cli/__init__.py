"""The command line: `mobizo train`, `eval`, `demo` and `env`."""
