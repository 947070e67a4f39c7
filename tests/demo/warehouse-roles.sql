-- The durable roles of the demo's warehouse, for servers where kdbt's own bootstrap SQL has not made them. Run by a superuser.
CREATE ROLE dbt_analytics NOLOGIN;
CREATE ROLE grp_raw_ro NOLOGIN;
CREATE ROLE grp_marts_ro NOLOGIN;
