create role storefront login;
create database orders;
\c orders
create table orders (
	id bigint generated always as identity primary key,
	customer text not null, product text not null, quantity integer not null, price numeric(10, 2) not null,
	created_at timestamptz not null default now());
insert into orders (customer, product, quantity, price, created_at)
	select (array['Ada', 'Barbara', 'Chen', 'Dorothy', 'Edsger', 'Frances'])[1 + i % 6], (array['Walnut desk', 'Reading lamp', 'Oak stool', 'Tea kettle'])[1 + i % 4],
		1 + i % 3, (array[349.00, 59.90, 128.00, 54.30])[1 + i % 4], timestamptz '2024-01-01 08:00Z' + i * interval '73 minutes'
	from generate_series(1, 500) i;
grant select, insert, update on orders to storefront;
