package main

import (
	"context"
	"embed"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"strings"
	"time"
	"unicode"

	"github.com/surgewall/surgewall/core"
	"github.com/surgewall/surgewall/httpmw"
)

//go:embed page
var page embed.FS

// server is the shop's HTTP side.
type server struct {
	shop       *shop
	product    product
	components []core.Component
	timeline   *timeline
	log        *slog.Logger
	closing    <-chan struct{} // closed when the live pages should let go
}

// product is what is on sale.
type product struct {
	ID    string `json:"product"`
	Name  string `json:"name"`
	Cents int    `json:"cents"`
}

// handler puts the routes together. Only purchases are limited: reading the
// page costs nothing that is scarce, and the live page has a bound of its own.
func (s *server) handler(purchases, watchers core.Guard) http.Handler {
	mux := http.NewServeMux()
	mux.Handle("POST /buy", httpmw.Guard(purchases)(http.HandlerFunc(s.buy)))
	mux.Handle("GET /live", httpmw.Guard(watchers)(http.HandlerFunc(s.live)))
	mux.HandleFunc("GET /state", s.state)
	mux.HandleFunc("GET /{$}", s.index)
	mux.Handle("GET /page/", http.FileServerFS(page))
	return secure(httpmw.Recover(httpmw.RecoverConfig{Answer: httpmw.RefuseWithProblem})(mux))
}

// secure sets what every answer needs.
func secure(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h := w.Header()
		h.Set("Content-Security-Policy", "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'")
		h.Set("X-Content-Type-Options", "nosniff")
		h.Set("Referrer-Policy", "no-referrer")
		next.ServeHTTP(w, r)
	})
}

func (s *server) index(w http.ResponseWriter, r *http.Request) {
	http.ServeFileFS(w, r, page, "page/index.html")
}

// buy answers POST /buy with a body of {"product": "…", "buyer": "…"}.
func (s *server) buy(w http.ResponseWriter, r *http.Request) {
	var ask struct{ Product, Buyer string }
	body := json.NewDecoder(http.MaxBytesReader(w, r.Body, 4<<10))
	body.DisallowUnknownFields()
	if err := body.Decode(&ask); err != nil {
		httpmw.Problem(w, http.StatusBadRequest, "The body must be a JSON object with product and buyer.")
		return
	}
	if _, err := body.Token(); !errors.Is(err, io.EOF) {
		httpmw.Problem(w, http.StatusBadRequest, "The body must be one JSON object.")
		return
	}
	ask.Buyer = strings.TrimSpace(ask.Buyer)
	if !isName(ask.Product) || !isName(ask.Buyer) {
		httpmw.Problem(w, http.StatusBadRequest, "product and buyer must be given, of at most 100 bytes and without control characters.")
		return
	}
	o, err := s.shop.buy(r.Context(), ask.Product, ask.Buyer)
	_, refused := errors.AsType[*core.Rejection](err)
	switch {
	case err == nil:
		answer(w, http.StatusCreated, map[string]any{"order": o.ID, "unit": o.UnitID, "state": "paid"})
	case errors.Is(err, errNoProduct):
		httpmw.Problem(w, http.StatusNotFound, "No such product.")
	case errors.Is(err, errSoldOut):
		httpmw.Problem(w, http.StatusGone, "Sold out.")
	case errors.Is(err, errUnsettled):
		answer(w, http.StatusAccepted, map[string]any{"order": o.ID, "unit": o.UnitID, "state": "being settled"})
	case r.Context().Err() != nil:
		// The buyer has left; what was begun is settled without them.
	case refused:
		httpmw.Refuse(w, r, err)
	default:
		s.log.Error("purchase", "error", err)
		httpmw.Problem(w, http.StatusBadGateway, "The payment failed; nothing was charged.")
	}
}

func isName(s string) bool {
	return s != "" && len(s) <= 100 && !strings.ContainsFunc(s, unicode.IsControl)
}

// state is everything that the page shows.
type state struct {
	product
	stock
	Components []core.Report `json:"components"`
	Events     []happening   `json:"events"`
}

func (s *server) snapshot(ctx context.Context) (state, error) {
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	n, err := s.shop.stock(ctx, s.product.ID)
	st := state{product: s.product, stock: n, Events: s.timeline.latest()}
	for _, c := range s.components {
		st.Components = append(st.Components, c.Inspect())
	}
	return st, err
}

func (s *server) state(w http.ResponseWriter, r *http.Request) {
	st, err := s.snapshot(r.Context())
	if err != nil {
		httpmw.Problem(w, http.StatusServiceUnavailable, "The stock cannot be read just now.")
		return
	}
	answer(w, http.StatusOK, st)
}

// live streams the state as server-sent events, twice a second.
func (s *server) live(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", "text/event-stream")
	w.Header().Set("Cache-Control", "no-store")
	out := http.NewResponseController(w)
	tick := time.NewTicker(500 * time.Millisecond)
	defer tick.Stop()
	for {
		if st, err := s.snapshot(r.Context()); err == nil {
			data, err := json.Marshal(st)
			if err != nil {
				s.log.Error("live page", "error", err)
				return
			}
			_ = out.SetWriteDeadline(time.Now().Add(5 * time.Second)) // a page that does not read is let go
			if _, err := fmt.Fprintf(w, "data: %s\n\n", data); err != nil || out.Flush() != nil {
				return
			}
		}
		select {
		case <-r.Context().Done():
			return
		case <-s.closing:
			return
		case <-tick.C:
		}
	}
}

// answer writes v as JSON.
func answer(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(v) // the client has gone: nobody to tell
}
