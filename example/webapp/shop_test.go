package main

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/surgewall/surgewall/core"
	"github.com/surgewall/surgewall/internal/pgtest"
)

func TestMain(m *testing.M) {
	goleak.VerifyTestMain(pgtest.Main(m))
}

// startApp is the program without its web server, on a database of its own.
func startApp(t *testing.T, units int) *app {
	t.Helper()
	a, err := start(t.Context(), settings{
		units: units, databaseURL: pgtest.DSN(t), private: true,
		log: slog.New(slog.DiscardHandler), out: io.Discard,
	})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, a.stop()) })
	return a
}

func (a *app) requireStock(t *testing.T, want stock) {
	t.Helper()
	got, err := a.shop.stock(t.Context(), a.server.product.ID)
	require.NoError(t, err)
	require.Equal(t, want, got)
}

func (a *app) requireAudit(t *testing.T) {
	t.Helper()
	violations, err := a.shop.audit(t.Context())
	require.NoError(t, err)
	require.Empty(t, violations)
}

func TestBuyersGetEachUnitOnce(t *testing.T) {
	a := startApp(t, 5)
	var mu sync.Mutex
	units := map[int64]int{}
	soldOut := 0
	var wg sync.WaitGroup
	for range 20 {
		wg.Go(func() {
			o, err := a.shop.buy(context.Background(), a.server.product.ID, "buyer")
			mu.Lock()
			defer mu.Unlock()
			if errors.Is(err, errSoldOut) {
				soldOut++
				return
			}
			if err != nil {
				t.Error(err)
				return
			}
			units[o.UnitID]++
		})
	}
	wg.Wait()
	require.Len(t, units, 5)
	require.Equal(t, 15, soldOut)
	a.requireStock(t, stock{Sold: 5})
	a.requireAudit(t)
}

func TestNoSuchProduct(t *testing.T) {
	a := startApp(t, 1)
	_, err := a.shop.buy(t.Context(), "chair", "buyer")
	require.ErrorIs(t, err, errNoProduct)
	a.requireStock(t, stock{Free: 1})
}

// The provider books the charge and cuts the connection: the shop does not know
// whether it was paid, asks another with the same key, and charges once.
func TestProviderThatCutsTheConnectionChargesOnce(t *testing.T) {
	a := startApp(t, 6)
	a.providers[1].down.Store(&fault{cut: true})
	for range 6 {
		_, err := a.shop.buy(t.Context(), a.server.product.ID, "buyer")
		require.NoError(t, err)
	}
	a.requireStock(t, stock{Sold: 6})
	a.requireAudit(t)
}

// All providers cut every connection: nobody knows. What the ledger says later
// decides, and it says charged.
func TestUnsettledPurchaseIsResumed(t *testing.T) {
	a := startApp(t, 1)
	for _, p := range a.providers {
		p.down.Store(&fault{cut: true})
	}
	_, err := a.shop.buy(t.Context(), a.server.product.ID, "buyer")
	require.ErrorIs(t, err, errUnsettled)
	a.requireStock(t, stock{Held: 1})

	for _, p := range a.providers {
		p.down.Store(nil)
	}
	require.NoError(t, a.settleAll(t.Context()))
	a.requireStock(t, stock{Sold: 1})
	a.requireAudit(t)
}

// The program died after the reservation, before the charge.
func TestReservationThatWasNeverChargedIsReleased(t *testing.T) {
	a := startApp(t, 1)
	o, err := a.shop.reserve(t.Context(), a.server.product.ID, "buyer")
	require.NoError(t, err)
	a.requireStock(t, stock{Held: 1})
	n, err := a.shop.settle(t.Context(), time.Hour)
	require.NoError(t, err)
	require.Zero(t, n, "it is not an hour old")
	n, err = a.shop.settle(t.Context(), 0)
	require.NoError(t, err)
	require.Equal(t, 1, n)
	a.requireStock(t, stock{Free: 1})

	// The charge of the dead program arrives late, and finds the void.
	require.ErrorIs(t, a.shop.pay.charge(t.Context(), o), errVoid)
	a.requireStock(t, stock{Free: 1})
	a.requireAudit(t)
}

// The program died after the charge, before it was written to the order.
func TestChargeThatWasNotConfirmedIsResumed(t *testing.T) {
	a := startApp(t, 1)
	o, err := a.shop.reserve(t.Context(), a.server.product.ID, "buyer")
	require.NoError(t, err)
	require.NoError(t, a.shop.pay.charge(t.Context(), o))
	n, err := a.shop.settle(t.Context(), 0)
	require.NoError(t, err)
	require.Equal(t, 1, n)
	a.requireStock(t, stock{Sold: 1})
	a.requireAudit(t)
}

func TestLedgerTakesTheFirstEntryOfRacingOnes(t *testing.T) {
	a := startApp(t, 1)
	for range 20 {
		o := order{ID: uuid.New(), Cents: 100}
		var charged, voided error
		var paid bool
		var wg sync.WaitGroup
		wg.Go(func() { charged = a.shop.pay.charge(t.Context(), o) })
		wg.Go(func() { paid, voided = a.shop.pay.void(t.Context(), o) })
		wg.Wait()
		require.NoError(t, voided)
		require.Equal(t, paid, charged == nil, "both read the same entry")
		if charged != nil {
			require.ErrorIs(t, charged, errVoid)
		}
	}
}

func TestNothingIsReservedWhenNobodyCanBePaid(t *testing.T) {
	a := startApp(t, 1)
	for _, id := range []string{"alpha", "beta", "gamma"} {
		require.True(t, a.shop.pay.backends.SetHealthy(id, false))
	}
	_, err := a.shop.buy(t.Context(), a.server.product.ID, "buyer")
	require.ErrorIs(t, err, errNoProvider)
	_, refused := errors.AsType[*core.Rejection](err)
	require.True(t, refused)
	a.requireStock(t, stock{Free: 1})
}

func TestAuditFindsWhatIsWrong(t *testing.T) {
	a := startApp(t, 4)
	for range 3 {
		_, err := a.shop.buy(t.Context(), a.server.product.ID, "buyer")
		require.NoError(t, err)
	}
	a.requireAudit(t)
	for _, wrong := range []struct{ sql, undo, found string }{
		{
			`delete from ledger where order_id = (select min(order_id::text)::uuid from ledger)`, "",
			"1 paid orders without exactly one charge",
		},
		{
			`insert into ledger (order_id, entry, amount_cents, provider) values (gen_random_uuid(), 'charged', 1, 'x')`,
			`delete from ledger where provider = 'x'`,
			"1 charges without a paid order",
		},
		{
			`update units set held = not held where id = (select max(id) from units)`,
			`update units set held = not held where id = (select max(id) from units)`,
			"1 units held by nobody, or free though held",
		},
	} {
		_, err := a.shop.db.Exec(t.Context(), wrong.sql)
		require.NoError(t, err)
		violations, err := a.shop.audit(t.Context())
		require.NoError(t, err)
		require.Contains(t, violations, wrong.found)
		if wrong.undo != "" {
			_, err = a.shop.db.Exec(t.Context(), wrong.undo)
			require.NoError(t, err)
		}
	}
	// Two paid orders for one unit, which the index would not allow.
	_, err := a.shop.db.Exec(t.Context(), `drop index orders_one_per_unit`)
	require.NoError(t, err)
	_, err = a.shop.db.Exec(t.Context(), `update orders set unit_id = (select min(unit_id) from orders)`)
	require.NoError(t, err)
	violations, err := a.shop.audit(t.Context())
	require.NoError(t, err)
	require.Contains(t, violations, "1 units sold more than once")
}
