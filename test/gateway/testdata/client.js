// What people do with node-postgres, through the gateway. Each line printed is checked.
const { Client, Pool } = require('pg');

const state = (p) => p.then(() => 'no error', (e) => e.code);

async function main() {
  const c = new Client();
  await c.connect();
  const items = [];
  for (const id of [1, 2, 3]) {
    const r = await c.query({ name: 'item', text: 'select item from orders where id = $1', values: [id] });
    items.push(r.rows[0].item);
  }
  console.log('prepared', items.join(','));
  console.log('refused', await state(c.query('delete from orders')), (await c.query('select count(*)::int as n from orders')).rows[0].n);
  await c.query('begin');
  await c.query("insert into orders values (100, 'in a transaction', 1, true, '{}')");
  console.log('refused inside', await state(c.query('delete from orders where true')), await state(c.query('select 1')));
  await c.query('rollback');
  console.log('rolled back', (await c.query('select count(*)::int as n from orders')).rows[0].n);
  const many = await Promise.all(Array.from({ length: 50 }, (_, i) => c.query('select $1::int + 1 as n', [i])));
  console.log('queued', many.reduce((s, r) => s + r.rows[0].n, 0));
  const notified = new Promise((resolve) => c.once('notification', (m) => resolve(m.channel + ' ' + m.payload)));
  await c.query('listen orders_changed');
  await c.query("notify orders_changed, 'three'");
  console.log('notified', await notified);
  const sleeping = state(c.query('select pg_sleep(60)'));
  await new Promise((r) => setTimeout(r, 300));
  const canceller = new Client();
  await new Promise((resolve) => {
    canceller.connection.once('end', resolve);
    canceller.cancel(c, c.activeQuery || c._activeQuery);
  });
  console.log('cancelled', await sleeping);
  await c.end();
  const pool = new Pool({ max: 10 });
  const refused = await Promise.all(Array.from({ length: 20 }, () => state(pool.query('delete from orders'))));
  const fine = await Promise.all(Array.from({ length: 20 }, () => pool.query('select 1 as x')));
  console.log('pool', new Set(refused).size, refused[0], fine.length);
  await pool.end();
}

main().catch((e) => {
  console.error(e);
  process.exit(1);
});
