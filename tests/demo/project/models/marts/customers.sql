{{ config(materialized='table') }}

select
    customers.customer_id,
    customers.name,
    regions.region,
    count(distinct orders.order_id) as orders,
    coalesce(sum(payments.amount), 0) as paid
from {{ ref('stg_customers') }} as customers
left join {{ ref('regions') }} as regions on regions.country = customers.country
left join {{ ref('stg_orders') }} as orders on orders.customer_id = customers.customer_id
left join {{ ref('stg_payments') }} as payments on payments.order_id = orders.order_id
group by 1, 2, 3
