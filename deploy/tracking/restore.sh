#!/usr/bin/env bash
# Restores what backup.sh wrote from stdin, before the server first starts. For a container of PostgreSQL's image.
# It overwrites nothing, and changes nothing before stdin has been read and found whole. If it is killed, run it again.
set -euo pipefail
umask 022
staging=/artifacts/.restoring
fail() {
    echo "restore: $1" >&2
    exit 1
}
if [ "$(id -u)" = 0 ]; then # a new volume belongs to root
    chown 10001:10001 /artifacts
    exec setpriv --reuid=10001 --regid=10001 --clear-groups bash "$0"
fi
tables=$(psql -XqAtc "SELECT count(*) FROM pg_tables WHERE schemaname NOT IN ('pg_catalog', 'information_schema')")
[ "$tables" = 0 ] || fail "nothing was changed: the database has $tables tables already, and must be empty.
Restore into another project (-p), or delete this one's data for good with: docker compose … down -v"

rm -rf "$staging" # of one that was killed
trap 'rm -rf "$staging"' EXIT
mkdir "$staging"
zstd -qdc | tar -C "$staging" -ixf - database.sql artifacts end-of-backup ||
    fail "nothing was changed: this is no backup, or it is cut off or damaged. (Or the lines above say what else is wrong.)"
made_with=$(sed -n 's/^artifacts=//p' "$staging/end-of-backup")
[ "$made_with" = "$CATDOG_ARTIFACTS" ] || [[ $made_with == *://* && $CATDOG_ARTIFACTS == *://* ]] ||
    fail "nothing was changed: the backup is of a server with CATDOG_ARTIFACTS=$made_with, and here it is $CATDOG_ARTIFACTS."

cp -aln "$staging/artifacts/." /artifacts # hard links: at once, and without a second copy
psql -Xqo /dev/null --set ON_ERROR_STOP=1 --single-transaction --file "$staging/database.sql"
case $CATDOG_ARTIFACTS in
*://*) echo "restore: complete, but for the artifacts: they are in $CATDOG_ARTIFACTS" >&2 ;;
*) echo "restore: complete" >&2 ;;
esac
