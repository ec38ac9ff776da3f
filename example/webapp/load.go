package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"text/tabwriter"
	"time"
)

// load is a crowd of buyers, each a real HTTP client of the shop.
type load struct {
	url     string
	product string
	buyers  int
	client  *http.Client

	// half is called once, when half of the buyers are through.
	half func()

	mu      sync.Mutex
	answers map[int]int     // guarded by mu; by status, 0 for no answer at all
	took    []time.Duration // guarded by mu; of all requests
	sales   []time.Duration // guarded by mu; of those that bought
	ends    map[string]int  // guarded by mu; how the buyers ended

	through atomic.Int64
}

const (
	patience = 6 // tries of one buyer before giving up
	arrivals = time.Second
)

// run sends the buyers in over a second and waits until all have ended.
func (l *load) run(ctx context.Context) {
	l.client = &http.Client{
		Timeout:   30 * time.Second,
		Transport: &http.Transport{MaxIdleConnsPerHost: 256, MaxConnsPerHost: 256},
	}
	defer l.client.CloseIdleConnections()
	l.answers, l.ends = map[int]int{}, map[string]int{}
	var wg sync.WaitGroup
	for i := range l.buyers {
		wg.Go(func() {
			if !pause(ctx, arrivals*time.Duration(i)/time.Duration(l.buyers)) {
				return
			}
			end := l.buy(ctx, "buyer-"+strconv.Itoa(i))
			l.mu.Lock()
			l.ends[end]++
			l.mu.Unlock()
			if l.through.Add(1) == int64(l.buyers/2) {
				l.half()
			}
		})
	}
	wg.Wait()
}

// buy is one buyer, who comes back when told to.
func (l *load) buy(ctx context.Context, buyer string) (end string) {
	body, err := json.Marshal(map[string]string{"product": l.product, "buyer": buyer})
	if err != nil {
		return "failed"
	}
	for range patience {
		status, again := l.send(ctx, body)
		switch status {
		case http.StatusCreated:
			return "sold"
		case http.StatusAccepted:
			return "being settled"
		case http.StatusGone:
			return "sold out"
		case http.StatusTooManyRequests, http.StatusServiceUnavailable:
			// As long as the shop asks, and then as chance has it, so that the
			// crowd does not come back as one.
			if !pause(ctx, again+rand.N(time.Second)) {
				return "gave up"
			}
		default:
			return "failed"
		}
	}
	return "gave up"
}

// send is one request. It returns the status, and what Retry-After asked for.
func (l *load) send(ctx context.Context, body []byte) (status int, again time.Duration) {
	start := time.Now()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, l.url+"/buy", bytes.NewReader(body))
	if err != nil {
		return 0, 0
	}
	req.Header.Set("Content-Type", "application/json")
	if resp, err := l.client.Do(req); err == nil {
		_, _ = io.Copy(io.Discard, resp.Body)
		resp.Body.Close()
		status = resp.StatusCode
		if s, err := strconv.Atoi(resp.Header.Get("Retry-After")); err == nil && s >= 0 && s <= 60 {
			again = time.Duration(s) * time.Second
		}
	}
	took := time.Since(start)
	l.mu.Lock()
	defer l.mu.Unlock()
	l.answers[status]++
	l.took = append(l.took, took)
	if status == http.StatusCreated {
		l.sales = append(l.sales, took)
	}
	return status, again
}

// pause waits for d, or reports false when ctx ends first.
func pause(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// report prints what became of the buyers and of their requests.
func (l *load) report(w io.Writer, trips, spans map[string]int, wall time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	slices.Sort(l.took)
	slices.Sort(l.sales)
	failed := 0
	for status, n := range l.answers {
		switch status {
		case http.StatusCreated, http.StatusAccepted, http.StatusGone, http.StatusTooManyRequests, http.StatusServiceUnavailable:
		default:
			failed += n
		}
	}
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	row := func(what string, value any) { fmt.Fprintf(t, "%s\t%v\n", what, value) }
	row("buyers", l.buyers)
	row("requests", len(l.took))
	row("sold (201)", l.answers[http.StatusCreated])
	row("being settled (202)", l.answers[http.StatusAccepted])
	row("sold out (410)", l.answers[http.StatusGone])
	row("throttled (429)", l.answers[http.StatusTooManyRequests])
	row("rejected (503)", l.answers[http.StatusServiceUnavailable])
	row("failed", failed)
	row("buyers who gave up", l.ends["gave up"])
	row("p50 of all answers", quantile(l.took, 0.50))
	row("p99 of all answers", quantile(l.took, 0.99))
	row("p50 of sales", quantile(l.sales, 0.50))
	row("p99 of sales", quantile(l.sales, 0.99))
	row("breaker trips", total(trips))
	for _, name := range sorted(trips) {
		row("  "+name, trips[name])
	}
	row("spans emitted", total(spans))
	for _, name := range sorted(spans) {
		row("  "+name, spans[name])
	}
	row("took", wall.Round(time.Millisecond))
	_ = t.Flush()
}

// quantile is the q-quantile of sorted durations, by nearest rank.
func quantile(sorted []time.Duration, q float64) time.Duration {
	if len(sorted) == 0 {
		return 0
	}
	return sorted[min(len(sorted)-1, int(q*float64(len(sorted))))].Round(10 * time.Microsecond)
}

func total(m map[string]int) (n int) {
	for _, v := range m {
		n += v
	}
	return n
}

func sorted(m map[string]int) []string {
	names := make([]string, 0, len(m))
	for name := range m {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}
