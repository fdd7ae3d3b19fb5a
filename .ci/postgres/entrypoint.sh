#!/bin/sh
# POSTGRES_USER, POSTGRES_PASSWORD and POSTGRES_DB are for the first start, as in the real image.
set -eu
bin=$(dirname "$(find /usr/lib/postgresql -name initdb | sort | tail -1)")
data=/var/lib/postgresql/data
PATH=$bin:$PATH
if [ ! -s "$data/PG_VERSION" ]; then
    password=$(mktemp)
    printf '%s\n' "$POSTGRES_PASSWORD" >"$password"
    initdb --pgdata "$data" --username "$POSTGRES_USER" --pwfile "$password" --auth scram-sha-256 --encoding UTF8 >/dev/null
    rm "$password"
    printf 'host all all all scram-sha-256\n' >>"$data/pg_hba.conf"
    echo "CREATE DATABASE \"$POSTGRES_DB\"" | postgres --single -D "$data" postgres >/dev/null
fi
exec postgres -D "$data" -c listen_addresses='*' -c unix_socket_directories=/tmp
