"""What Alembic runs: the migrations, on the connection that `migrate.py` holds."""

from alembic import context

from tuneproof.store.tables import metadata

config = context.config
context.configure(
    connection=config.attributes["connection"],
    target_metadata=metadata,
    version_table=config.attributes["version_table"],
)
with context.begin_transaction():
    context.run_migrations()
