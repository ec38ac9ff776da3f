package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"sync/atomic"
	"time"

	"github.com/google/uuid"

	"github.com/surgewall/surgewall/sqlpool"
)

// provider is one of the payment services that the shop pays through: an HTTP
// server on loopback that books charges into the ledger which all share.
//
//	POST /charge  books a charge, unless the order is void
//	POST /void    books a void, unless the order is charged
//
// Both take the order's id as Idempotency-Key and the amount in the body, and
// answer with the entry that stands. The first entry for a key stands for ever,
// so each may be sent as often as one likes, to any provider.
type provider struct {
	name   string
	url    *url.URL
	ledger *sqlpool.Pool
	server *http.Server
	down   atomic.Pointer[fault] // nil: it works
}

// fault is what is wrong with a provider.
type fault struct {
	delay time.Duration // before anything is booked
	cut   bool          // the connection is cut half-way: booked, but not answered
}

// entry is one line of the ledger, as providers exchange it.
type entry struct {
	Entry string `json:"entry,omitempty"` // "charged" or "void"
	Cents int    `json:"cents"`
}

// startProvider serves a provider on a free port of loopback until Close.
func startProvider(name string, ledger *sqlpool.Pool) (*provider, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, fmt.Errorf("payment provider %s: %w", name, err)
	}
	p := &provider{
		name:   name,
		url:    &url.URL{Scheme: "http", Host: l.Addr().String()},
		ledger: ledger,
	}
	mux := http.NewServeMux()
	mux.HandleFunc("POST /charge", p.book("charged"))
	mux.HandleFunc("POST /void", p.book("void"))
	p.server = &http.Server{
		Handler:           mux,
		ReadHeaderTimeout: 5 * time.Second,
		ReadTimeout:       10 * time.Second,
	}
	go func() { _ = p.server.Serve(l) }() // ends with Close
	return p, nil
}

// Close stops the provider at once.
func (p *provider) Close() error { return p.server.Close() }

// book answers a request to enter what into the ledger.
func (p *provider) book(what string) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		id, err := uuid.Parse(r.Header.Get("Idempotency-Key"))
		if err != nil {
			http.Error(w, "Idempotency-Key must be a UUID", http.StatusBadRequest)
			return
		}
		var ask entry
		if err := json.NewDecoder(http.MaxBytesReader(w, r.Body, 1<<10)).Decode(&ask); err != nil || ask.Cents <= 0 {
			http.Error(w, "body must be {\"cents\": n}", http.StatusBadRequest)
			return
		}
		f := p.down.Load()
		if f != nil {
			select {
			case <-time.After(f.delay):
			case <-r.Context().Done():
				return
			}
		}
		stands, err := p.enter(r.Context(), id, what, ask.Cents)
		if err != nil {
			http.Error(w, "ledger unavailable", http.StatusServiceUnavailable)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		if f != nil && f.cut {
			// The worst that a provider can do: it has booked, and nobody knows.
			w.Header().Set("Content-Length", "64")
			w.WriteHeader(http.StatusOK)
			_, _ = w.Write([]byte("{"))
			panic(http.ErrAbortHandler)
		}
		if stands.Entry != what {
			w.WriteHeader(http.StatusConflict)
		}
		_ = json.NewEncoder(w).Encode(stands)
	}
}

// enter books what for the order if nothing is booked, and returns the entry
// that stands.
func (p *provider) enter(ctx context.Context, id uuid.UUID, what string, cents int) (e entry, err error) {
	// The insert locks the key, so that of two at once the second waits, and
	// then reads what the first has booked.
	if _, err = p.ledger.Exec(ctx, `insert into ledger (order_id, entry, amount_cents, provider) values ($1, $2, $3, $4) on conflict do nothing`, id, what, cents, p.name); err != nil {
		return e, err
	}
	err = p.ledger.QueryRow(ctx, `select entry, amount_cents from ledger where order_id = $1`, id).Scan(&e.Entry, &e.Cents)
	if err == nil && e.Cents != cents {
		err = errors.New("the key was used for another amount")
	}
	return e, err
}
