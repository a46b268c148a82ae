#!/bin/sh
# regress.sh OUT SOURCE: run PostgreSQL's regression SQL with the psql that the
# environment leads to, one file after the other as its schedule has them, and
# write what it prints to OUT. What needs a superuser was done before.
set -eu
out=$1 source=$2
export PG_ABS_SRCDIR="$source" PG_ABS_BUILDDIR=/nonexistent PG_LIBDIR=/nonexistent PG_DLSUFFIX=.so
export PGTZ=PST8PDT PGDATESTYLE='Postgres, MDY' PGOPTIONS='-c intervalstyle=postgres_verbose'
for t in $(sed -n 's/^test: //p' "$source/parallel_schedule"); do
	[ "$t" = test_setup ] && continue
	timeout 120 psql -X -a -q -v HIDE_TABLEAM=on -v HIDE_TOAST_COMPRESSION=on <"$source/sql/$t.sql" >"$out/$t.out" 2>&1 || echo "psql ended with $?" >>"$out/$t.out"
done
