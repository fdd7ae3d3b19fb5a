#!/usr/bin/env bash
# Writes the database and the artifacts to stdout, as a .tar.zst, while the server runs. For a container of PostgreSQL's image.
set -euo pipefail
table=$(psql -XqAtc "SELECT to_regclass('alembic_version')")
if [ -z "$table" ]; then
    echo "backup: there is no backup: MLflow's database is empty. Is it the right project (-p or COMPOSE_PROJECT_NAME)?" >&2
    exit 1
fi
# The database first: MLflow writes a file before the row that names it, so nothing that this names will be missing.
pg_dump --no-owner --no-privileges >/tmp/database.sql
echo "artifacts=$CATDOG_ARTIFACTS" >/tmp/end-of-backup

pack() {
    # Status 1: the server added or replaced files meanwhile. It puts each in its place as a whole.
    tar -C "$1" --warning=no-file-changed -cf - "${@:2}" || [ $? -eq 1 ]
}
{
    pack /tmp database.sql
    pack / --exclude='.artifact.uploading.*' --exclude=artifacts/.restoring artifacts
    pack /tmp end-of-backup # without it, restore.sh takes nothing
} | zstd -q
case $CATDOG_ARTIFACTS in
*://*) echo "backup: complete, but for the artifacts: they are in $CATDOG_ARTIFACTS" >&2 ;;
*) echo "backup: complete" >&2 ;;
esac
