"""What compiled code works with during a check: values, events, functions, methods and places."""
