-- The model was built by a lease's user, in the role of the policy.
select * from {{ ref('customers') }} where built_by not like 'KDBT\\_ADA\\__' escape '\\' or built_as <> 'OWNER'
