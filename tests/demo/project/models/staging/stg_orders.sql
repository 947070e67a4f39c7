select
    order_id,
    customer_id,
    ordered_at,
    status,
    updated_at
from {{ source('raw', 'orders') }}
