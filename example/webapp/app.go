package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"

	"github.com/google/uuid"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"

	"github.com/surgewall/surgewall/core"
	"github.com/surgewall/surgewall/core/balance"
	"github.com/surgewall/surgewall/core/circuit"
	"github.com/surgewall/surgewall/core/limit"
	"github.com/surgewall/surgewall/example/webapp/database"
	"github.com/surgewall/surgewall/otelhook"
	"github.com/surgewall/surgewall/sqlpool"
	"github.com/surgewall/surgewall/transport"
)

// settings are what the flags say.
type settings struct {
	units       int
	databaseURL string
	private     bool // keep out of what is in the database already
	log         *slog.Logger
	out         io.Writer
}

// app is the shop and all that it runs on. What start has started, stop stops,
// last first.
type app struct {
	shop      *shop
	server    *server
	purchases core.Guard
	watchers  core.Guard
	providers []*provider
	trips     *tripCounter
	spans     *spanCounter
	hook      *otelhook.Hook
	closing   chan struct{}
	stops     []func() error
}

var sale = product{ID: "lamp", Name: "Desk lamp, last of its kind", Cents: 4900}

const attemptTimeout = 250 * time.Millisecond // of one request to a provider

// start brings up everything but the web server.
func start(ctx context.Context, set settings) (a *app, err error) {
	a = &app{closing: make(chan struct{}), trips: &tripCounter{}, spans: &spanCounter{log: set.log}}
	defer func() {
		if err != nil {
			err = errors.Join(err, a.stop())
			a = nil
		}
	}()
	db, err := database.Open(ctx, database.Options{DatabaseURL: set.databaseURL, Progress: set.out})
	if err != nil {
		return a, err
	}
	a.onStop(db.Close)
	fmt.Fprintln(set.out, "database:", db.What())

	// What happens goes to OpenTelemetry, to the page, and to the table.
	tracing := sdktrace.NewTracerProvider(sdktrace.WithSpanProcessor(a.spans))
	if a.hook, err = otelhook.New(otelhook.WithTracerProvider(tracing)); err != nil {
		return a, err
	}
	a.onStop(func() error { return a.hook.Shutdown(context.Background()) })
	line := &timeline{}
	heard := core.Observers(a.hook, line, a.trips)

	// The server side: so many purchases a second and at a time, and so many
	// live pages.
	perSecond, err := limit.NewTokenBucket(limit.TokenBucketConfig{
		Name: "purchases", Rate: limit.PerSecond(300), Burst: 100, Observer: heard,
	})
	if err != nil {
		return a, err
	}
	atOnce, err := limit.NewConcurrency(limit.ConcurrencyConfig{Name: "purchases at once", Limit: 64, Observer: heard})
	if err != nil {
		return a, err
	}
	a.purchases = core.Chain(perSecond, atOnce)
	if a.watchers, err = limit.NewConcurrency(limit.ConcurrencyConfig{Name: "live pages", Limit: 32, Observer: heard}); err != nil {
		return a, err
	}

	// The SQL side: a small pool behind a breaker.
	serverBreaker, err := newBreaker("postgres", heard)
	if err != nil {
		return a, err
	}
	pool, err := a.openPool(ctx, "shop", db.DSN(), 10, serverBreaker, heard)
	if err != nil {
		return a, err
	}

	// The client side: three providers, a breaker for each.
	ledger, err := a.openPool(ctx, "ledger", db.DSN(), 6, nil, heard)
	if err != nil {
		return a, err
	}
	backends, err := a.startProviders(ledger, heard)
	if err != nil {
		return a, err
	}
	balanced, err := transport.New(transport.Config{Backends: backends})
	if err != nil {
		return a, err
	}
	a.onStop(func() error { balanced.CloseIdleConnections(); return nil })

	pay := &payments{client: &http.Client{Transport: balanced}, backends: backends, timeout: attemptTimeout}

	if set.private {
		sale.ID = "lamp-" + uuid.NewString()
	}
	a.shop = &shop{db: pool, pay: pay, log: set.log}
	if err := a.shop.setUp(ctx, sale, set.units); err != nil {
		return a, err
	}
	a.startSettling(ctx)
	a.server = &server{
		shop: a.shop, product: sale, timeline: line, log: set.log, closing: a.closing,
		components: []core.Component{perSecond, atOnce, backends, serverBreaker, pool},
	}
	return a, nil
}

// newBreaker makes a breaker that is quick to try again: a sale does not last.
func newBreaker(name string, heard core.Observer) (*circuit.Breaker, error) {
	return circuit.New(circuit.Config{Name: name, OpenFor: 2 * time.Second, Observer: heard})
}

func (a *app) openPool(ctx context.Context, name, dsn string, size int, guard core.Guard, heard core.Observer) (*sqlpool.Pool, error) {
	pool, err := sqlpool.Open(ctx, sqlpool.Config{Name: name, DSN: dsn, Max: size, MinIdle: 2, Guard: guard, Observer: heard})
	if err != nil {
		return nil, err
	}
	a.onStop(func() error {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		return pool.Close(ctx)
	})
	return pool, nil
}

// startProviders starts the payment providers, and balances over them.
func (a *app) startProviders(ledger *sqlpool.Pool, heard core.Observer) (*balance.Balancer[*url.URL], error) {
	var backends []balance.Backend[*url.URL]
	for _, name := range []string{"alpha", "beta", "gamma"} {
		p, err := startProvider(name, ledger)
		if err != nil {
			return nil, err
		}
		a.onStop(p.Close)
		a.providers = append(a.providers, p)
		breaker, err := newBreaker("payments "+name, heard)
		if err != nil {
			return nil, err
		}
		backends = append(backends, balance.Backend[*url.URL]{ID: name, Value: p.url, Guard: breaker})
	}
	return balance.New(balance.Config[*url.URL]{Name: "payments", Backends: backends, Observer: heard})
}

// startSettling ends interrupted purchases in the background, those of an
// earlier run of this program first.
func (a *app) startSettling(ctx context.Context) {
	ctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	var ended sync.WaitGroup
	ended.Go(func() { a.shop.settleEvery(ctx, time.Second, 10*time.Second) })
	a.onStop(func() error {
		cancel()
		ended.Wait()
		return nil
	})
}

// web is the web server, which somebody else starts.
func (a *app) web() *http.Server {
	return &http.Server{
		Handler:           a.server.handler(a.purchases, a.watchers),
		ReadHeaderTimeout: 5 * time.Second,
		ReadTimeout:       10 * time.Second,
		IdleTimeout:       time.Minute,
		MaxHeaderBytes:    16 << 10,
	}
}

// underLoad lets buyers in while one provider is slow, and another begins to
// fail half-way. It prints what became of them, and audits the database.
func (a *app) underLoad(ctx context.Context, url string, buyers int, out io.Writer) error {
	a.providers[1].down.Store(&fault{delay: 2 * attemptTimeout})
	crowd := &load{
		url: url, product: sale.ID, buyers: buyers,
		half: func() { a.providers[2].down.Store(&fault{cut: true}) },
	}
	fmt.Fprintf(out, "%d buyers; payments %s is slow, payments %s fails from half-way on\n\n", buyers, a.providers[1].name, a.providers[2].name)
	start := time.Now()
	crowd.run(ctx)
	wall := time.Since(start)
	for _, p := range a.providers {
		p.down.Store(nil)
	}
	if err := a.settleAll(ctx); err != nil {
		return err
	}
	if err := a.hook.Flush(ctx); err != nil {
		return err
	}
	crowd.report(out, a.trips.byName(), a.spans.byName(), wall)
	violations, err := a.shop.audit(ctx)
	if err != nil {
		return fmt.Errorf("audit: %w", err)
	}
	if len(violations) > 0 {
		return fmt.Errorf("audit: %s", strings.Join(violations, "; "))
	}
	fmt.Fprintln(out, "\naudit: every unit sold at most once, every order charged exactly once")
	return ctx.Err()
}

// settleAll ends what the load has left in doubt. The breakers may need a
// moment to find that the providers work again.
func (a *app) settleAll(ctx context.Context) (err error) {
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	for {
		var left int
		if _, err = a.shop.settle(ctx, 0); err == nil {
			left, err = a.shop.unsettled(ctx)
		}
		if err == nil && left == 0 {
			return nil
		}
		if !pause(ctx, 200*time.Millisecond) {
			return fmt.Errorf("%d orders cannot be settled: %w", left, errors.Join(err, ctx.Err()))
		}
	}
}

// onStop adds what stop calls.
func (a *app) onStop(f func() error) { a.stops = append(a.stops, f) }

// stop ends everything that start began.
func (a *app) stop() error {
	var errs []error
	for i := len(a.stops) - 1; i >= 0; i-- {
		errs = append(errs, a.stops[i]())
	}
	a.stops = nil
	return errors.Join(errs...)
}
