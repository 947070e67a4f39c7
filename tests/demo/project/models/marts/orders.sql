{{ config(materialized='incremental', unique_key='order_id', incremental_strategy='delete+insert') }}

-- The last day of orders is read again at each run, so a second run replaces rows instead of adding them.
select
    orders.order_id,
    orders.customer_id,
    orders.status,
    orders.updated_at,
    coalesce(sum(payments.amount), 0) as amount,
    session_user::text as built_by
from {{ ref('stg_orders') }} as orders
left join {{ ref('stg_payments') }} as payments on payments.order_id = orders.order_id
{% if is_incremental() %}
where orders.updated_at >= (select max(updated_at) - interval '1 day' from {{ this }})
{% endif %}
group by 1, 2, 3, 4
