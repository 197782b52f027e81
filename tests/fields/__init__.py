"""What the proxy does with every string field of requests and responses: ``python -m tests.fields``."""
