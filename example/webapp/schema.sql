-- A unit is one piece of a product. It is sold at most once: at most one live
-- order holds it, which the partial index enforces whatever the program does.
create table if not exists products (
	id          text primary key,
	name        text not null,
	price_cents integer not null check (price_cents > 0)
);

create table if not exists units (
	id         bigint generated always as identity primary key,
	product_id text not null references products,
	held       boolean not null default false
);
create index if not exists units_free on units (product_id, id) where not held;

-- An order is reserved, then paid or released; nothing leads back.
create table if not exists orders (
	id         uuid primary key,
	unit_id    bigint not null references units,
	buyer      text not null,
	state      text not null default 'reserved' check (state in ('reserved', 'paid', 'released')),
	created_at timestamptz not null default now(),
	touched_at timestamptz not null default now()
);
create unique index if not exists orders_one_per_unit on orders (unit_id) where state <> 'released';
create index if not exists orders_unsettled on orders (touched_at) where state = 'reserved';

-- The payment providers' own book, which they share. The first entry for an
-- order decides for ever: charged, or void so that no late charge can land.
create table if not exists ledger (
	order_id     uuid primary key,
	entry        text not null check (entry in ('charged', 'void')),
	amount_cents integer not null,
	provider     text not null,
	booked_at    timestamptz not null default now()
);
