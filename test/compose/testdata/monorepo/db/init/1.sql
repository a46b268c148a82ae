create table items (name text);
insert into items values ('one'), ('two'), ('three');
