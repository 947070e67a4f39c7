#!/bin/sh
# What a DBA does once: the durable roles that the broker printed from the policies, and who owns and reads what.
# Running it again changes nothing.
set -eu
psql -X -q -v ON_ERROR_STOP=1 -v login_password="$KDBT_DWH_PASSWORD" -f /bootstrap/roles.sql postgres
if [ -z "$(psql -X -A -t -c "SELECT 1 FROM pg_namespace WHERE nspname = 'analytics'" analytics)" ]; then
    psql -X -q -v ON_ERROR_STOP=1 --single-transaction -f /warehouse-grants.sql analytics
fi
