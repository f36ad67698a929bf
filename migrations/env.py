"""What Alembic runs: the migrations, on the connection that `migrations.migrate` opened."""

from __future__ import annotations

from alembic import context

from migrations.migrate import CONNECTION, compared_metadata

context.configure(
    connection=context.config.attributes[CONNECTION],
    target_metadata=list(compared_metadata()),
    # All or nothing: PostgreSQL rolls schema changes back like any other.
    transaction_per_migration=False,
)
with context.begin_transaction():
    context.run_migrations()
