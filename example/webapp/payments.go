package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"time"

	"github.com/surgewall/surgewall/core"
	"github.com/surgewall/surgewall/core/balance"
)

// payments is the shop's side of the providers: an http.Client whose transport
// spreads the requests over them and has a circuit breaker for each.
type payments struct {
	client   *http.Client
	backends *balance.Balancer[*url.URL]
	timeout  time.Duration // of one attempt
}

// errNoProvider: the breakers of all providers are open.
var errNoProvider = errors.New("no payment provider can be reached")

// ready is an error while there is nobody to pay through: a reason not to
// reserve what could not be paid for.
func (p *payments) ready() error {
	for _, b := range p.backends.Stats().Backends {
		if b.Healthy && b.Ready {
			return nil
		}
	}
	return &core.Rejection{Guard: p.backends.Name(), Reason: core.NoBackend, Err: errNoProvider}
}

// errVoid: the ledger holds a void for the order, so it can never be charged.
var errVoid = errors.New("the order was voided")

// charge has the order paid for. Its error leaves open whether it was, unless
// errors.Is(err, errVoid).
func (p *payments) charge(ctx context.Context, o order) error {
	stands, err := p.send(ctx, "/charge", o)
	if err != nil {
		return err
	}
	if stands != "charged" {
		return errVoid
	}
	return nil
}

// void makes sure that the order will never be charged, or reports that it was.
func (p *payments) void(ctx context.Context, o order) (charged bool, err error) {
	stands, err := p.send(ctx, "/void", o)
	return stands == "charged", err
}

// send asks a provider to book, and another one if that fails: the order's id
// is the Idempotency-Key, so asking twice books once.
func (p *payments) send(ctx context.Context, path string, o order) (stands string, err error) {
	body, err := json.Marshal(entry{Cents: o.Cents})
	if err != nil {
		return "", err
	}
	const attempts = 4
	for attempt := 1; ; attempt++ {
		stands, err = p.attempt(core.WithAttempt(ctx, attempt), path, o, body)
		if err == nil || attempt == attempts || ctx.Err() != nil {
			return stands, err
		}
		if refused, ok := errors.AsType[*core.Rejection](err); ok && refused.Reason == core.NoBackend {
			return stands, err // no provider is left to ask
		}
	}
}

func (p *payments) attempt(ctx context.Context, path string, o order, body []byte) (stands string, err error) {
	ctx, cancel := context.WithTimeout(ctx, p.timeout)
	defer cancel()
	// The host is a name for all providers; the transport puts one in its place.
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://payments"+path, bytes.NewReader(body))
	if err != nil {
		return "", err
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("Idempotency-Key", o.ID.String())
	resp, err := p.client.Do(req)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK && resp.StatusCode != http.StatusConflict {
		return "", fmt.Errorf("provider answered %s", resp.Status)
	}
	var e entry
	if err := json.NewDecoder(resp.Body).Decode(&e); err != nil {
		return "", fmt.Errorf("provider's answer: %w", err)
	}
	return e.Entry, nil
}
