"""Alembic's entry: runs inside the connection and transaction that the store hands over."""

from alembic import context

from gemini_proxy.traces.schema import metadata

context.configure(connection=context.config.attributes["connection"], target_metadata=metadata)
with context.begin_transaction():
    context.run_migrations()
