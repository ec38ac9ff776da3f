package main

import (
	"context"
	_ "embed"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/surgewall/surgewall/sqlpool"
)

//go:embed schema.sql
var schema string

// What a purchase can end with beside success.
var (
	errNoProduct = errors.New("no such product")
	errSoldOut   = errors.New("sold out")

	// errUnsettled: the unit is reserved, and whether it was paid is not known
	// yet. The settler will find out.
	errUnsettled = errors.New("payment not settled yet")
)

// shop sells units. A purchase is two short transactions with the payment
// between them, so that no database connection is held while money moves.
// Whatever is interrupted in between, by a crash of this program too, stays
// reserved in the database until settle finds it.
type shop struct {
	db  *sqlpool.Pool
	pay *payments
	log *slog.Logger
}

// order is one reserved unit.
type order struct {
	ID      uuid.UUID
	UnitID  int64
	Product string
	Cents   int
}

// setUp creates the tables, and the product with its stock if it is not there.
func (s *shop) setUp(ctx context.Context, p product, units int) error {
	if _, err := s.db.Exec(ctx, schema); err != nil {
		return fmt.Errorf("create tables: %w", err)
	}
	return s.inTx(ctx, func(tx pgx.Tx) error {
		tag, err := tx.Exec(ctx, `insert into products (id, name, price_cents) values ($1, $2, $3) on conflict do nothing`, p.ID, p.Name, p.Cents)
		if err != nil || tag.RowsAffected() == 0 {
			return err
		}
		_, err = tx.Exec(ctx, `insert into units (product_id) select $1 from generate_series(1, $2::int)`, p.ID, units)
		return err
	})
}

// buy sells one unit of product to buyer: it reserves a unit, has it paid for,
// and confirms or releases it.
func (s *shop) buy(ctx context.Context, product, buyer string) (order, error) {
	if err := s.pay.ready(); err != nil {
		return order{}, err
	}
	o, err := s.reserve(ctx, product, buyer)
	if err != nil {
		return order{}, err
	}
	// From here on the order exists. It is settled even if the buyer leaves;
	// what cannot be settled in time is left to settle.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
	defer cancel()
	if err := s.pay.charge(ctx, o); err != nil {
		paid, settleErr := s.settleOrder(ctx, o)
		switch {
		case settleErr != nil:
			return o, fmt.Errorf("%w: %w", errUnsettled, errors.Join(err, settleErr))
		case !paid:
			return o, fmt.Errorf("payment: %w", err)
		}
		return o, nil // the charge had landed after all
	}
	if err := s.finish(ctx, o, "paid"); err != nil {
		return o, fmt.Errorf("%w: %w", errUnsettled, err)
	}
	return o, nil
}

// reserve takes a free unit and writes the order that holds it.
func (s *shop) reserve(ctx context.Context, product, buyer string) (o order, err error) {
	o = order{ID: uuid.New(), Product: product}
	err = s.inTx(ctx, func(tx pgx.Tx) error {
		err := tx.QueryRow(ctx, `select price_cents from products where id = $1`, product).Scan(&o.Cents)
		if errors.Is(err, pgx.ErrNoRows) {
			return errNoProduct
		} else if err != nil {
			return err
		}
		err = tx.QueryRow(ctx, `
			update units set held = true
			where id = (select id from units where product_id = $1 and not held order by id limit 1 for update skip locked)
			returning id`, product).Scan(&o.UnitID)
		if errors.Is(err, pgx.ErrNoRows) {
			return errSoldOut
		} else if err != nil {
			return err
		}
		_, err = tx.Exec(ctx, `insert into orders (id, unit_id, buyer) values ($1, $2, $3)`, o.ID, o.UnitID, buyer)
		return err
	})
	return o, err
}

// finish moves a reserved order to paid or released, and frees the unit of a
// released one. A second finish of the same order changes nothing.
func (s *shop) finish(ctx context.Context, o order, state string) error {
	return s.inTx(ctx, func(tx pgx.Tx) error {
		tag, err := tx.Exec(ctx, `update orders set state = $2, touched_at = now() where id = $1 and state = 'reserved'`, o.ID, state)
		if err != nil || tag.RowsAffected() == 0 || state == "paid" {
			return err
		}
		_, err = tx.Exec(ctx, `update units set held = false where id = $1`, o.UnitID)
		return err
	})
}

// settleOrder ends an order whose payment is in doubt. The providers' ledger
// decides: either the charge is in it, or the void is from now on.
func (s *shop) settleOrder(ctx context.Context, o order) (paid bool, err error) {
	paid, err = s.pay.void(ctx, o)
	if err != nil {
		return false, err
	}
	state := "released"
	if paid {
		state = "paid"
	}
	return paid, s.finish(ctx, o, state)
}

// settle ends the orders that have been reserved for longer than age: those of
// purchases that were interrupted. It reports how many it ended. Several may
// run at once, in several processes; touching an order keeps the others off it
// for another age.
func (s *shop) settle(ctx context.Context, age time.Duration) (n int, err error) {
	rows, err := s.db.Query(ctx, `
		update orders o set touched_at = now() from units u join products p on p.id = u.product_id
		where u.id = o.unit_id and o.id in (
			select id from orders where state = 'reserved' and touched_at <= now() - $1::interval
			order by touched_at limit 100 for update skip locked)
		returning o.id, o.unit_id, u.product_id, p.price_cents`, age)
	if err != nil {
		return 0, err
	}
	stale, err := pgx.CollectRows(rows, pgx.RowToStructByPos[order])
	if err != nil {
		return 0, err
	}
	var problems []error
	for _, o := range stale {
		if _, err := s.settleOrder(ctx, o); err != nil {
			problems = append(problems, fmt.Errorf("order %s: %w", o.ID, err))
			continue
		}
		n++
	}
	return n, errors.Join(problems...)
}

// unsettled is how many orders are reserved.
func (s *shop) unsettled(ctx context.Context) (n int, err error) {
	err = s.db.QueryRow(ctx, `select count(*) from orders where state = 'reserved'`).Scan(&n)
	return n, err
}

// settleEvery settles interrupted purchases until ctx ends.
func (s *shop) settleEvery(ctx context.Context, every, age time.Duration) {
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		n, err := s.settle(ctx, age)
		if n > 0 {
			s.log.Info("settled interrupted purchases", "orders", n)
		}
		if err != nil && ctx.Err() == nil {
			s.log.Warn("settling interrupted purchases", "error", err)
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// stock is what has become of the units of one product.
type stock struct {
	Free int `json:"free"` // for sale
	Held int `json:"held"` // being paid for
	Sold int `json:"sold"`
}

// stock counts the units of product.
func (s *shop) stock(ctx context.Context, product string) (n stock, err error) {
	err = s.db.QueryRow(ctx, `
		select count(*) filter (where not u.held),
		       count(*) filter (where u.held and o.state is distinct from 'paid'),
		       count(*) filter (where o.state = 'paid')
		from units u left join orders o on o.unit_id = u.id and o.state <> 'released'
		where u.product_id = $1`, product).Scan(&n.Free, &n.Held, &n.Sold)
	return n, err
}

// audit counts what must not be, from the rows alone: it trusts no index and
// no code above.
func (s *shop) audit(ctx context.Context) (violations []string, err error) {
	for _, check := range []struct{ what, query string }{
		{"units sold more than once", `select count(*) from (select unit_id from orders where state = 'paid' group by unit_id having count(*) > 1) x`},
		{"paid orders without exactly one charge", `select count(*) from orders o where state = 'paid' and 1 <> (select count(*) from ledger l where l.order_id = o.id and l.entry = 'charged' and l.amount_cents = (select price_cents from products p join units u on u.product_id = p.id where u.id = o.unit_id))`},
		{"released orders that were charged", `select count(*) from orders o join ledger l on l.order_id = o.id and l.entry = 'charged' where o.state = 'released'`},
		{"charges without a paid order", `select count(*) from ledger l where l.entry = 'charged' and not exists (select from orders o where o.id = l.order_id and o.state = 'paid')`},
		{"orders left unsettled", `select count(*) from orders where state = 'reserved'`},
		{"units held by nobody, or free though held", `select count(*) from units u where u.held <> exists (select from orders o where o.unit_id = u.id and o.state <> 'released')`},
	} {
		var n int
		if err := s.db.QueryRow(ctx, check.query).Scan(&n); err != nil {
			return nil, fmt.Errorf("%s: %w", check.what, err)
		}
		if n > 0 {
			violations = append(violations, fmt.Sprintf("%d %s", n, check.what))
		}
	}
	return violations, nil
}

// inTx runs fn in a transaction: committed if fn returns nil, else rolled back.
func (s *shop) inTx(ctx context.Context, fn func(pgx.Tx) error) error {
	return pgx.BeginFunc(ctx, s.db, fn)
}
