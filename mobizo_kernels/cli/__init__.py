"""The command line: `mobizo train`, `eval`, `tokenize`, `adapter`, `demo` and `env`."""
