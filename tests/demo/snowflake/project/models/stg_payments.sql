{{ config(materialized='view') }}
select id, customer, cents / 100.0 as amount from {{ ref('payments') }}
