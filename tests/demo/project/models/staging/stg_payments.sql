select
    payment_id,
    order_id,
    cents / 100.0 as amount
from {{ source('raw', 'payments') }}
