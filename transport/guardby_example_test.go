package transport_test

import (
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/surgewall/surgewall/core"
	"github.com/surgewall/surgewall/core/circuit"
	"github.com/surgewall/surgewall/transport"
)

// A breaker for each host: that one is down says nothing of the others.
func ExampleGuardBy() {
	inVirtualTime(func() {
		breakers, err := circuit.NewGroup(circuit.GroupConfig[transport.Origin]{
			Config:  circuit.Config{Name: "upstream", FailureThreshold: 2, OpenFor: 10 * time.Second, SuccessThreshold: 1},
			MaxKeys: 1000,
			OnStateChange: func(host transport.Origin, from, to circuit.State) {
				fmt.Println(host, from, "->", to)
			},
		})
		if err != nil {
			fmt.Println(err)
			return
		}
		down := true
		network := stub(func(req *http.Request) (*http.Response, error) { // in place of http.DefaultTransport
			resp := &http.Response{StatusCode: 200, Header: http.Header{}, Body: http.NoBody, Request: req}
			if down && req.URL.Host == "a.example" {
				resp.StatusCode = 503
			}
			return resp, nil
		})
		rt, err := transport.GuardBy(breakers, transport.OriginOf, network)
		if err != nil {
			fmt.Println(err)
			return
		}
		client := &http.Client{Transport: rt}
		get := func(url string) {
			resp, err := client.Get(url)
			if refused, ok := errors.AsType[*core.Rejection](err); ok {
				after, _ := refused.RetryAfter()
				fmt.Println(url, "not sent:", refused.Reason, after)
				return
			}
			if err != nil {
				fmt.Println(err)
				return
			}
			_ = resp.Body.Close()
			fmt.Println(url, resp.StatusCode)
		}
		for range 3 {
			get("https://a.example/x")
		}
		get("https://b.example/x")
		time.Sleep(10 * time.Second)
		down = false
		get("https://a.example/x")
	})
	// Output:
	// https://a.example/x 503
	// https://a.example closed -> open
	// https://a.example/x 503
	// https://a.example/x not sent: circuit_open 10s
	// https://b.example/x 200
	// https://a.example open -> half_open
	// https://a.example half_open -> closed
	// https://a.example/x 200
}

// A breaker for each shard of a service, by a header of the request, for which a
// gRPC status counts as well.
func ExampleGuardByWith() {
	breakers, err := circuit.NewGroup(circuit.GroupConfig[string]{Config: circuit.Config{FailureThreshold: 1}})
	if err != nil {
		fmt.Println(err)
		return
	}
	shard := func(req *http.Request) (string, error) { return req.Header.Get("X-Shard"), nil }
	rt, err := transport.GuardByWith(breakers, shard, transport.GuardByConfig{
		Base: stub(func(req *http.Request) (*http.Response, error) {
			header := http.Header{"Grpc-Status": {"14"}} // UNAVAILABLE
			return &http.Response{StatusCode: 200, Header: header, Body: http.NoBody, Request: req}, nil
		}),
		Outcome: func(resp *http.Response) core.Outcome {
			if resp.Header.Get("Grpc-Status") == "14" {
				return core.Failure
			}
			return transport.Outcome(resp)
		},
	})
	if err != nil {
		fmt.Println(err)
		return
	}
	for _, name := range []string{"7", "7", ""} {
		req, err := http.NewRequest(http.MethodPost, "http://service/", http.NoBody)
		if err != nil {
			fmt.Println(err)
			return
		}
		req.Header.Set("X-Shard", name)
		resp, err := rt.RoundTrip(req)
		if err != nil {
			fmt.Println(errors.Is(err, circuit.ErrOpen), errors.Is(err, transport.ErrNoKey))
			continue
		}
		_ = resp.Body.Close()
		fmt.Println(resp.StatusCode, breakers.Get(name).State())
	}
	// Output:
	// 200 open
	// true false
	// false true
}
