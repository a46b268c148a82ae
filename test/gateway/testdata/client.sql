\set VERBOSITY sqlstate
\d orders
\dt
\df shop*
select item from orders where id = 1;
delete from orders;
select count(*) from orders;
begin;
insert into orders values (100, 'in a transaction', 1, true, '{}');
delete from orders;
select 1;
rollback;
select count(*) from orders;
select 1 \; delete from orders;
\copy (select id, item from orders order by id) to '/dev/stdout'
begin \; insert into orders (id) values (7) \; rollback;
select count(*) from orders;
select lo_create(0);
listen x;
notify x, 'y';
select 'goes on';
