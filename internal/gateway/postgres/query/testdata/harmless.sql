# What people and programs ask, each of which reads and nothing more.
select 1
====
SELECT 1;
====
;
====
-- a comment alone
====
/* a /* nested */ comment */ select 1
====
select ';', 'drop table t', "delete" from "update"
====
select $$drop table t; delete from u$$, $x$ $$ $x$, $_é$a$_é$
====
select E'it\'s', 'it''s', U&'d\0061t\+000061', U&'d!0061t' uescape '!', B'1', X'1f', N'x'
====
select 'a'
  'b'
  'c'
====
select 1.5, .5, 1e10, 1.5e-3, 12345678901234567890, -1, - 1, +1
====
select 1 +-1, 2- -1, 3*-4, @ -5, |/ 25, ||/ 27, 5 != -4, 1<>-1
====
select * from orders where id = $1
====
select o.id, o.total from orders o where o.customer_id = $1 order by o.created_at desc limit 50
====
select count(*), sum(total), avg(total)::numeric(10,2), min(total), max(total) from orders
====
select count(distinct customer_id) filter (where total > 10) from orders
====
select c.email, count(o.id) as orders from customers c left join orders o on o.customer_id = c.id group by c.email having count(o.id) > 3 order by 2 desc
====
select * from orders natural join customers
====
select * from a join b using (id) cross join c full outer join d on a.x = d.x
====
select * from only orders
====
table orders
====
values (1, 'a'), (2, 'b')
====
(select 1) union all (select 2) intersect select 3 except select 4 order by 1
====
with recent as (select * from orders where created_at > now() - interval '7 days') select * from recent
====
with recursive t(n) as (values (1) union all select n + 1 from t where n < 100) select sum(n) from t
====
with recursive tree as (select id, parent, 0 as depth from categories where parent is null union all select c.id, c.parent, depth + 1 from categories c join tree t on c.parent = t.id) search depth first by id set ord cycle id set looped using path select * from tree
====
with x as materialized (select 1), y as not materialized (select 2) select * from x, y
====
select * from generate_series(1, 10) as g(i)
====
select * from generate_series(now() - interval '1 day', now(), '1 hour') with ordinality
====
select * from unnest(array[1,2,3], array['a','b','c']) as t(a, b)
====
select * from rows from (generate_series(1,3), generate_series(1,4)) as x(a, b)
====
select x from orders, lateral (select max(i.price) as x from items i where i.order_id = orders.id) m
====
select row_number() over (partition by customer_id order by created_at), lag(total) over w, sum(total) over (order by id rows between 1 preceding and current row exclude ties) from orders window w as (order by id)
====
select rank() over (order by total desc), ntile(4) over (order by total), first_value(id) over (order by id), nth_value(id, 2) over (order by id) from orders
====
select percentile_cont(0.5) within group (order by total), mode() within group (order by state) from orders
====
select case when total > 100 then 'big' when total is null then 'none' else 'small' end from orders
====
select coalesce(a, b, 0), nullif(a, 0), greatest(a, b), least(a, b) from t
====
select * from orders where state in ('open', 'paid') and total between 1 and 10 and note like 'a%' escape '\' and note not ilike '%b' and note similar to 'c%' and note ~* 'd'
====
select * from orders where exists (select 1 from items where items.order_id = orders.id) and id = any (array[1,2]) and id <> all (select id from archived)
====
select * from orders where (a, b) in (select x, y from u) and (a, b) = (1, 2) and row(a, b) is distinct from row(1, 2)
====
select a is null, b is not null, c is true, d is not unknown, f is not distinct from g from t where not h
====
select cast(a as text), a::int, a::varchar(10), a::numeric(10,2), a::timestamp with time zone, a::int[], a::double precision, a::bit varying(5) from t
====
select date '2024-01-01', time '10:00', timestamp '2024-01-01 10:00', interval '1 day', interval '1' year, bool 't', point '(1,2)', json '{}'
====
select extract(year from created_at), date_part('month', created_at), date_trunc('day', created_at), created_at at time zone 'UTC', age(created_at) from orders
====
select current_date, current_time, current_timestamp, localtime, localtimestamp, now(), clock_timestamp(), statement_timestamp(), transaction_timestamp()
====
select current_user, session_user, user, current_role, current_catalog, current_schema, current_database(), version()
====
select substring('abc' from 2 for 1), substring('abc' from '%#"b#"%' for '#'), overlay('abc' placing 'x' from 2), position('b' in 'abc'), trim(both 'x' from 'xax'), trim(leading from ' a'), upper('a'), lower('A'), initcap('a'), length('a'), char_length('a'), octet_length('a')
====
select concat('a', 1), concat_ws(',', 'a', 'b'), format('%s %I %L', 'a', 'b', 'c'), left('abc', 1), right('abc', 1), lpad('a', 3), rpad('a', 3, 'x'), repeat('a', 3), replace('a', 'a', 'b'), reverse('abc'), split_part('a,b', ',', 1), strpos('a', 'a'), translate('a', 'a', 'b'), md5('a'), quote_ident('a'), quote_literal('a'), ascii('a'), chr(65), encode('a', 'base64'), decode('YQ==', 'base64'), sha256('a')
====
select regexp_replace('a', 'b', 'c', 'g'), regexp_matches('a', 'b'), regexp_match('a', 'b'), regexp_split_to_table('a b', ' '), regexp_split_to_array('a b', ' '), string_to_array('a,b', ','), array_to_string(array[1,2], ','), string_agg(a, ',' order by a) from t
====
select abs(-1), ceil(1.5), ceiling(1.5), floor(1.5), round(1.555, 2), trunc(1.5), mod(5, 2), power(2, 3), sqrt(4), exp(1), ln(2), log(10), sign(-1), pi(), random(), degrees(1), radians(1), sin(1), cos(1), atan2(1, 2), gcd(4, 6), width_bucket(1, 0, 10, 5)
====
select to_char(now(), 'YYYY-MM-DD'), to_date('2024', 'YYYY'), to_timestamp(0), to_number('1', '9'), make_date(2024, 1, 1), make_interval(days => 1), justify_days(interval '40 days'), date_bin('15 minutes', now(), now())
====
select j -> 'a', j ->> 'a', j #> '{a,b}', j #>> '{a,b}', j @> '{}', j ? 'a', j ?| array['a'], j ?& array['a'], j || '{}', j - 'a', j #- '{a}', j @? '$.a', j @@ '$.a == 1', j['a']['b'] from t
====
select to_json(a), to_jsonb(a), row_to_json(t), json_build_object('a', 1), jsonb_build_array(1, 2), json_agg(a), jsonb_object_agg(a, b), jsonb_set('{}', '{a}', '1'), jsonb_pretty('{}'), json_typeof('1'), jsonb_path_query_array('[1]', '$[*]') from t
====
select * from jsonb_each('{"a":1}'), jsonb_array_elements('[1]'), jsonb_object_keys('{}'), json_to_recordset('[]') as x(a int, b text), jsonb_populate_record(null::pg_catalog.pg_class, '{}'), to_json(1)
====
# of PostgreSQL 17
select json_object('a': 1, 'b': 2 null on null), json_array(1, 2), json_arrayagg(a), json_objectagg(a: b) from t
====
# of PostgreSQL 17
select * from json_table('[]'::jsonb, '$[*]' columns (id for ordinality, a int path '$.a', nested path '$.b[*]' columns (b text path '$')))
====
# of PostgreSQL 17
select json_value('{}', '$.a'), json_query('{}', '$.a'), json_exists('{}', '$.a')
====
select array[1,2] || 3, array_agg(a), array_length(a, 1), array_position(a, 1), array_remove(a, 1), cardinality(a), a[1], a[1:2], (array[1,2])[1], array(select 1), unnest(a) from t
====
select '[1,2)'::int4range @> 1, int4range(1, 2) && int4range(2, 3), lower(r), upper(r), isempty(r), range_agg(r) from t where not isempty(r)
====
select '192.168.0.1'::inet << '192.168.0.0/16'::cidr, host('192.168.0.1'), masklen('192.168.0.0/16'), network('192.168.0.1/24')
====
select to_tsvector('english', 'a b') @@ to_tsquery('a & b'), plainto_tsquery('a'), websearch_to_tsquery('a'), ts_rank(v, q), ts_headline('a', q) from t
====
select xmlelement(name a, xmlattributes(1 as b), 'c'), xmlforest(1 as a), xmlparse(document '<a/>'), xmlserialize(content '<a/>' as text), xmlconcat('<a/>', '<b/>'), xpath('/a', '<a/>'), xmlexists('/a' passing '<a/>'), xmlagg(x) from t
====
select * from xmltable('/a/b' passing '<a><b>1</b></a>' columns id for ordinality, b int path '.')
====
select gen_random_uuid(), 'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11'::uuid
====
select bit_count(b'101'), get_byte('a', 0), '\x01'::bytea, b'1' & b'0', 5 # 3, ~5, 1 << 2, 8 >> 1
====
select circle '((0,0),1)' @> point '(0,0)', box '((0,0),(1,1))' && box '((0,0),(1,1))', point '(0,0)' <-> point '(1,1)', area(box '((0,0),(1,1))')
====
select * from orders tablesample bernoulli (10) repeatable (1)
====
select * from orders order by id fetch first 5 rows with ties
====
select * from orders order by id using < nulls first offset 5 rows
====
select distinct on (customer_id) customer_id, id from orders order by customer_id, created_at desc
====
select a, b, sum(c) from t group by grouping sets ((a), (b), ()), rollup (a, b), cube (a, b)
====
select grouping(a, b), a, b from t group by rollup (a, b)
====
select a collate "C" from t order by a collate "de_DE"
====
select pg_catalog.lower('A'), pg_catalog.count(*) from pg_catalog.pg_class
====
select 1 operator(pg_catalog.+) 2
====
select oid::regclass, 'orders'::regclass, 'int4'::regtype, to_regclass('orders'), pg_typeof(1) from pg_class
====
select pg_size_pretty(pg_total_relation_size('orders')), pg_relation_size('orders'), pg_database_size(current_database()), pg_table_size('orders'), pg_indexes_size('orders')
====
select pid, state, query, wait_event from pg_stat_activity where pid <> pg_backend_pid()
====
select relname, n_live_tup, n_dead_tup from pg_stat_user_tables
====
select locktype, mode, granted, pg_blocking_pids(pid) from pg_locks
====
select has_table_privilege('orders', 'select'), has_schema_privilege('public', 'usage'), pg_has_role('a', 'member')
====
select pg_get_viewdef('v'), pg_get_indexdef(1), pg_get_constraintdef(1), pg_get_functiondef(1), pg_get_expr(adbin, adrelid) from pg_attrdef
====
select obj_description(oid), col_description(oid, 1), format_type(1, 2), shobj_description(oid, 'pg_database') from pg_class
====
select current_setting('server_version'), current_setting('a.b', true), inet_server_addr(), inet_client_port(), getdatabaseencoding()
====
select pg_is_in_recovery(), txid_current_if_assigned(), txid_current_snapshot(), pg_current_snapshot(), pg_last_wal_replay_lsn()
====
select table_name from information_schema.tables where table_schema = 'public'
====
select column_name, data_type, is_nullable, column_default from information_schema.columns where table_name = $1 order by ordinal_position
====
select pg_sleep(0.1)
====
explain select * from orders
====
explain (costs off, format json) select * from orders where id = 1
====
explain delete from orders
====
explain (analyze, buffers) select count(*) from orders
====
explain analyze verbose with x as (select 1) select * from x
====
begin
====
BEGIN TRANSACTION ISOLATION LEVEL SERIALIZABLE, READ ONLY, DEFERRABLE
====
start transaction read only
====
commit; begin; rollback and chain; end; abort
====
savepoint a; rollback to savepoint a; release a
====
set transaction isolation level repeatable read
====
set session characteristics as transaction read only
====
set local statement_timeout = '5s'
====
set application_name to 'it''s me'
====
set session application_name = default
====
reset application_name
====
reset all
====
set time zone 'Europe/Berlin'
====
set time zone interval '-08:00' hour to minute
====
set datestyle to iso, mdy
====
set client_encoding to 'UTF8'
====
set names 'utf-8'
====
SET standard_conforming_strings = on
====
set search_path = ''
====
set search_path to pg_catalog
====
reset search_path
====
set search_path to "$user", public
====
set local search_path = shop
====
set schema 'shop'
====
set constraints all deferred
====
set xml option document
====
set enable_seqscan = off; explain select 1; reset enable_seqscan
====
set default_transaction_read_only = on
====
show search_path
====
show all
====
show transaction isolation level
====
SHOW server_version_num
====
discard all
====
discard plans
====
deallocate all
====
deallocate prepare "x y"
====
prepare q (int, text) as select * from orders where id = $1 and state = $2
====
declare c scroll cursor with hold for select * from orders
====
fetch forward 10 from c
====
move all in c
====
close c
====
close all
====
listen orders_changed
====
unlisten *
====
copy orders to stdout
====
copy orders (id, total) to stdout with (format csv, header)
====
copy (select * from orders where total > 5) to stdout (format binary)
====
copy public.orders to stdout with binary
====
lock table orders in access share mode
====
# psql's tab completion
SELECT pg_catalog.quote_ident(c.relname) FROM pg_catalog.pg_class c WHERE c.relkind IN ('r', 'S', 'v', 'm', 'f', 'p') AND substring(pg_catalog.quote_ident(c.relname),1,2)='or' AND pg_catalog.pg_table_is_visible(c.oid) LIMIT 1000
====
# pgx, of types it does not know
select t.oid, t.typname, t.typbasetype, t.typelem, t.typrelid from pg_type t where t.typname = any($1::text[]) order by t.oid
====
# pgx LoadType
select typtype::text, typbasetype, array(select enumlabel from pg_enum where enumtypid = $1 order by enumsortorder) from pg_type where oid = $1
====
# pgx Ping
-- ping
====
# database/sql
;
====
# lib/pq
SELECT 1 AS x WHERE EXISTS (SELECT NULL FROM pg_catalog.pg_type)
====
# JDBC at the start
SET extra_float_digits = 3
====
SET application_name = 'PostgreSQL JDBC Driver'
====
# JDBC type look-ups
SELECT n.nspname = ANY(current_schemas(true)), n.nspname, t.typname FROM pg_catalog.pg_type t JOIN pg_catalog.pg_namespace n ON t.typnamespace = n.oid WHERE t.oid = $1
====
SELECT typinput='pg_catalog.array_in'::regproc as is_array, typtype, typname, pg_type.oid   FROM pg_catalog.pg_type   LEFT JOIN (select ns.oid as nspoid, ns.nspname, r.r           from pg_namespace as ns           join ( select s.r, (current_schemas(false))[s.r] as nspname                    from generate_series(1, array_upper(current_schemas(false), 1)) as s(r) ) as r          using ( nspname )        ) as sp     ON sp.nspoid = typnamespace  WHERE pg_type.oid = $1  ORDER BY sp.r, pg_type.oid DESC
====
# JDBC getTables
SELECT NULL AS TABLE_CAT, n.nspname AS TABLE_SCHEM, c.relname AS TABLE_NAME,  CASE n.nspname ~ '^pg_' OR n.nspname = 'information_schema'  WHEN true THEN CASE  WHEN n.nspname = 'pg_catalog' OR n.nspname = 'information_schema' THEN CASE c.relkind   WHEN 'r' THEN 'SYSTEM TABLE'   WHEN 'v' THEN 'SYSTEM VIEW'   WHEN 'i' THEN 'SYSTEM INDEX'   ELSE NULL   END  ELSE NULL  END  ELSE NULL  END  AS TABLE_TYPE, d.description AS REMARKS FROM pg_catalog.pg_namespace n, pg_catalog.pg_class c  LEFT JOIN pg_catalog.pg_description d ON (c.oid = d.objoid AND d.objsubid = 0  and d.classoid = 'pg_class'::regclass)  WHERE c.relnamespace = n.oid  AND c.relname LIKE 'x' ORDER BY TABLE_TYPE,TABLE_SCHEM,TABLE_NAME
====
# JDBC getColumns
SELECT * FROM (SELECT n.nspname,c.relname,a.attname,a.atttypid,a.attnotnull OR (t.typtype = 'd' AND t.typnotnull) AS attnotnull,a.atttypmod,a.attlen,t.typtypmod,row_number() OVER (PARTITION BY a.attrelid ORDER BY a.attnum) AS attnum, nullif(a.attidentity, '') as attidentity,pg_catalog.pg_get_expr(def.adbin, def.adrelid) AS adsrc,dsc.description,t.typbasetype,t.typtype  FROM pg_catalog.pg_namespace n  JOIN pg_catalog.pg_class c ON (c.relnamespace = n.oid)  JOIN pg_catalog.pg_attribute a ON (a.attrelid=c.oid)  JOIN pg_catalog.pg_type t ON (a.atttypid = t.oid)  LEFT JOIN pg_catalog.pg_attrdef def ON (a.attrelid=def.adrelid AND a.attnum = def.adnum)  LEFT JOIN pg_catalog.pg_description dsc ON (c.oid=dsc.objoid AND a.attnum = dsc.objsubid)  WHERE c.relkind in ('r','p','v','f','m') and a.attnum > 0 AND NOT a.attisdropped ) c WHERE true
====
# psycopg 3, of a type by name
SELECT typname AS name, oid, typarray AS array_oid, oid::regtype::text AS regtype, typdelim AS delimiter FROM pg_type t WHERE t.oid = to_regtype($1) ORDER BY t.oid
====
# psycopg 2, hstore look-up
SELECT t.oid, typarray FROM pg_type t JOIN pg_namespace ns ON typnamespace = ns.oid WHERE typname = 'hstore'
====
# asyncpg, type introspection
WITH RECURSIVE typeinfo_tree(oid, ns, name, kind, basetype, elemtype, elemdelim, range_subtype, attrtypoids, attrnames, depth) AS (SELECT ti.oid, ti.ns, ti.name, ti.kind, ti.basetype, ti.elemtype, ti.elemdelim, ti.range_subtype, ti.attrtypoids, ti.attrnames, 0 FROM (SELECT t.oid AS oid, ns.nspname AS ns, t.typname AS name, t.typtype AS kind, (CASE WHEN t.typtype = 'd' THEN (WITH RECURSIVE typebases(oid, depth) AS (SELECT t2.typbasetype AS oid, 0 AS depth FROM pg_type t2 WHERE t2.oid = t.oid UNION ALL SELECT t2.typbasetype AS oid, tb.depth + 1 AS depth FROM pg_type t2, typebases tb WHERE tb.oid = t2.oid AND t2.typbasetype != 0) SELECT oid FROM typebases ORDER BY depth DESC LIMIT 1) ELSE NULL END) AS basetype, t.typelem AS elemtype, elem_t.typdelim AS elemdelim, range_t.rngsubtype AS range_subtype, (CASE WHEN t.typtype = 'c' THEN (SELECT array_agg(ia.atttypid ORDER BY ia.attnum) FROM pg_attribute ia INNER JOIN pg_class c ON (ia.attrelid = c.oid) WHERE ia.attnum > 0 AND NOT ia.attisdropped AND c.reltype = t.oid) ELSE NULL END) AS attrtypoids, NULL::text[] AS attrnames FROM pg_catalog.pg_type AS t INNER JOIN pg_catalog.pg_namespace ns ON (ns.oid = t.typnamespace) LEFT JOIN pg_type elem_t ON (t.typlen = -1 AND t.typelem != 0 AND t.typelem = elem_t.oid) LEFT JOIN pg_range range_t ON (t.oid = range_t.rngtypid)) AS ti WHERE ti.oid = any($1::oid[])) SELECT DISTINCT *, basetype::regtype::text AS basetype_name FROM typeinfo_tree ORDER BY depth DESC
====
# SQLAlchemy at the start
select pg_catalog.version()
====
select current_schema()
====
show standard_conforming_strings
====
SELECT pg_catalog.pg_class.relname FROM pg_catalog.pg_class JOIN pg_catalog.pg_namespace ON pg_catalog.pg_namespace.oid = pg_catalog.pg_class.relnamespace WHERE pg_catalog.pg_class.relname = $1::VARCHAR AND pg_catalog.pg_class.relkind = ANY (ARRAY[$2::VARCHAR, $3::VARCHAR]) AND pg_catalog.pg_table_is_visible(pg_catalog.pg_class.oid) AND pg_catalog.pg_namespace.nspname != $4::VARCHAR
====
# Django
SELECT c.relname, CASE WHEN c.relispartition THEN 'p' WHEN c.relkind IN ('m', 'v') THEN 'v' ELSE 't' END, obj_description(c.oid, 'pg_class') FROM pg_catalog.pg_class c LEFT JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace WHERE c.relkind IN ('f', 'm', 'p', 'r', 'v') AND n.nspname NOT IN ('pg_catalog', 'pg_toast') AND pg_catalog.pg_table_is_visible(c.oid)
====
SELECT set_config('TimeZone', 'UTC', false)
====
# Rails at the start
SET client_min_messages TO 'warning'
====
SET SESSION timezone TO 'UTC'
====
SELECT t.oid, t.typname, t.typelem, t.typdelim, t.typinput, r.rngsubtype, t.typtype, t.typbasetype FROM pg_type as t LEFT JOIN pg_range as r ON oid = rngtypid WHERE t.typname IN ('int2', 'int4', 'int8', 'oid', 'float4', 'float8', 'bool')
====
SELECT a.attname, format_type(a.atttypid, a.atttypmod), pg_get_expr(d.adbin, d.adrelid), a.attnotnull, a.atttypid, a.atttypmod, c.collname, col_description(a.attrelid, a.attnum) AS comment FROM pg_attribute a LEFT JOIN pg_attrdef d ON a.attrelid = d.adrelid AND a.attnum = d.adnum LEFT JOIN pg_type t ON a.atttypid = t.oid LEFT JOIN pg_collation c ON a.attcollation = c.oid AND a.attcollation <> t.typcollation WHERE a.attrelid = '"orders"'::regclass AND a.attnum > 0 AND NOT a.attisdropped ORDER BY a.attnum
====
# node-postgres and Prisma
SELECT "public"."Order"."id", "public"."Order"."total" FROM "public"."Order" WHERE ("public"."Order"."id" = $1 AND 1=1) LIMIT $2 OFFSET $3
====
SELECT COUNT(*) FROM (SELECT "public"."Order"."id" FROM "public"."Order" WHERE 1=1 OFFSET $1) AS "sub"
====
# Npgsql at the start
SELECT ns.nspname, t.oid, t.typname, t.typtype, t.typnotnull, t.elemtypoid FROM ( SELECT typ.oid, typ.typnamespace, typ.typname, typ.typtype, typ.typrelid, typ.typnotnull, typ.relkind, elemtyp.oid AS elemtypoid, elemtyp.typname AS elemtypname, CASE WHEN elemproc.proname='array_recv' THEN 'a' ELSE elemtyp.typtype END AS elemtyptype FROM ( SELECT typ.oid, typnamespace, typname, typrelid, typnotnull, relkind, typelem AS elemoid, CASE WHEN proc.proname='array_recv' THEN 'a' ELSE typ.typtype END AS typtype, CASE WHEN proc.proname='array_recv' THEN typ.typelem WHEN typ.typtype='r' THEN rngsubtype WHEN typ.typtype='d' THEN typ.typbasetype END AS elemtypoid FROM pg_type AS typ LEFT JOIN pg_class AS cls ON (cls.oid = typ.typrelid) LEFT JOIN pg_proc AS proc ON proc.oid = typ.typreceive LEFT JOIN pg_range ON (pg_range.rngtypid = typ.oid) ) AS typ LEFT JOIN pg_type AS elemtyp ON elemtyp.oid = elemtypoid LEFT JOIN pg_proc AS elemproc ON elemproc.oid = elemtyp.typreceive ) AS t JOIN pg_namespace AS ns ON (ns.oid = typnamespace)
====
# pgbench -S
SELECT abalance FROM pgbench_accounts WHERE aid = 1234;
====
# pgbench at the start
select o.n, p.partstrat, pg_catalog.count(i.inhparent) from pg_catalog.pg_class as c join pg_catalog.pg_namespace as n on (n.oid = c.relnamespace) cross join lateral (select pg_catalog.array_position(pg_catalog.current_schemas(true), n.nspname)) as o(n) left join pg_catalog.pg_partitioned_table as p on (p.partrelid = c.oid) left join pg_catalog.pg_inherits as i on (c.oid = i.inhparent) where c.relname = 'pgbench_accounts' and o.n is not null group by 1, 2 order by 1 asc limit 1
====
# pgAdmin
SELECT db.oid as did, db.datname, db.datallowconn, pg_encoding_to_char(db.encoding) AS serverencoding, has_database_privilege(db.oid, 'CREATE') as cancreate, datistemplate FROM pg_catalog.pg_database db WHERE db.datname = current_database()
