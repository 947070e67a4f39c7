-- Who built it stands in it.
select customer, sum(amount) as paid, current_user() as built_by, current_role() as built_as
from {{ ref('stg_payments') }}
group by customer
