-- An order has at most one payment; each row here is one that has more.
select order_id
from {{ ref('stg_payments') }}
group by order_id
having count(*) > 1
