"""Training loops of other libraries around our step, each in a module named after the library."""
