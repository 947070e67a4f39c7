-- Who owns and who reads what in the demo's warehouse. Run by a superuser in the database `analytics`, after data and roles.

-- Who reads raw data: the owner of what dbt builds, and people through grp_raw_ro.
GRANT USAGE ON SCHEMA raw TO grp_raw_ro, dbt_analytics;
GRANT SELECT ON ALL TABLES IN SCHEMA raw TO grp_raw_ro, dbt_analytics;
ALTER DEFAULT PRIVILEGES IN SCHEMA raw GRANT SELECT ON TABLES TO grp_raw_ro, dbt_analytics;

-- The schemas of the team's build exist beforehand, so that its owner needs no CREATE on the database.
CREATE SCHEMA analytics AUTHORIZATION dbt_analytics;
CREATE SCHEMA analytics_marts AUTHORIZATION dbt_analytics;
CREATE SCHEMA analytics_dbt_test__audit AUTHORIZATION dbt_analytics;

-- grp_marts_ro reads the marts, also those that dbt has yet to build.
GRANT USAGE ON SCHEMA analytics_marts TO grp_marts_ro;
ALTER DEFAULT PRIVILEGES FOR ROLE dbt_analytics IN SCHEMA analytics_marts GRANT SELECT ON TABLES TO grp_marts_ro;
