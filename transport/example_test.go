package transport_test

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"

	"github.com/surgewall/surgewall/core"
	"github.com/surgewall/surgewall/core/balance"
	"github.com/surgewall/surgewall/core/circuit"
	"github.com/surgewall/surgewall/transport"
)

func ExampleGuard() {
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(http.StatusInternalServerError)
	}))
	defer server.Close()

	breaker, err := circuit.New(circuit.Config{Name: "payments", FailureThreshold: 2})
	if err != nil {
		fmt.Println(err)
		return
	}
	client := &http.Client{Transport: transport.Guard(breaker, server.Client().Transport)}

	for range 3 {
		resp, err := client.Get(server.URL)
		if refused, ok := errors.AsType[*core.Rejection](err); ok {
			fmt.Println("not sent:", refused.Reason)
			continue
		}
		if err != nil {
			fmt.Println(err)
			continue
		}
		_ = resp.Body.Close()
		fmt.Println(resp.StatusCode)
	}
	// Output:
	// 500
	// 500
	// not sent: circuit_open
}

func ExampleNew() {
	serve := func(status int) *httptest.Server {
		return httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(status)
		}))
	}
	good, bad := serve(http.StatusOK), serve(http.StatusServiceUnavailable)
	defer good.Close()
	defer bad.Close()

	// Two backends, each with a breaker of its own.
	list, err := transport.ParseBackends([]string{good.URL, bad.URL}, func(id string) (core.Guard, error) {
		return circuit.New(circuit.Config{Name: id})
	})
	if err != nil {
		fmt.Println(err)
		return
	}
	backends, err := balance.New(balance.Config[*url.URL]{Name: "payments", Backends: list})
	if err != nil {
		fmt.Println(err)
		return
	}
	base := &http.Transport{}
	defer base.CloseIdleConnections()
	rt, err := transport.New(transport.Config{Base: base, Backends: backends})
	if err != nil {
		fmt.Println(err)
		return
	}
	client := &http.Client{Transport: rt}

	answers := map[int]int{}
	for range 50 {
		resp, err := client.Get("http://payments/charge") // the host is the backend's
		if err != nil {
			fmt.Println(err)
			return
		}
		_ = resp.Body.Close()
		answers[resp.StatusCode]++
	}
	// Five failures open the breaker of the bad one; from then on all requests
	// go to the other.
	fmt.Println(answers)
	// Output: map[200:45 503:5]
}

func ExampleParseBackends() {
	list, err := transport.ParseBackends([]string{"http://10.0.0.1:8080", "https://eu.example.com/api"}, nil)
	if err != nil {
		fmt.Println(err)
		return
	}
	for _, b := range list {
		fmt.Println(b.ID)
	}
	_, err = transport.ParseBackends([]string{"http://user:password@10.0.0.1"}, nil)
	fmt.Println(err)
	// Output:
	// 10.0.0.1:8080
	// eu.example.com/api
	// transport.ParseBackends.urls: 0: the URL at this index must not hold a user: set the Authorization header
}

func ExampleTransport_RoundTrip() {
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		_, _ = io.WriteString(w, "hello")
	}))
	defer server.Close()
	backends, err := balance.New(balance.Config[*url.URL]{Backends: []balance.Backend[*url.URL]{
		{ID: "a", Value: &url.URL{Scheme: "http", Host: server.Listener.Addr().String()}},
	}})
	if err != nil {
		fmt.Println(err)
		return
	}
	rt, err := transport.New(transport.Config{Base: server.Client().Transport, Backends: backends})
	if err != nil {
		fmt.Println(err)
		return
	}
	req, err := http.NewRequest(http.MethodGet, "http://service/", nil)
	if err != nil {
		fmt.Println(err)
		return
	}
	resp, err := rt.RoundTrip(req)
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println(backends.Stats().Backends[0].InFlight) // until the body is at its end
	body, err := io.ReadAll(resp.Body)
	fmt.Println(string(body), err)
	fmt.Println(backends.Stats().Backends[0].InFlight)
	_ = resp.Body.Close()
	// Output:
	// 1
	// hello <nil>
	// 0
}

func ExampleOutcome() {
	for _, status := range []int{200, 404, 429, 503} {
		fmt.Println(status, transport.Outcome(&http.Response{StatusCode: status}))
	}
	// Output:
	// 200 success
	// 404 success
	// 429 throttled
	// 503 failure
}
