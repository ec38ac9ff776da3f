package transport_test

import (
	"errors"
	"fmt"
	"net/http"
	"testing"
	"testing/synctest"
	"time"

	"github.com/surgewall/surgewall/core"
	"github.com/surgewall/surgewall/core/limit"
	"github.com/surgewall/surgewall/transport"
)

// upstream answers every third request with 429 and Retry-After: 2.
func upstream(start time.Time) http.RoundTripper {
	n := 0
	return stub(func(req *http.Request) (*http.Response, error) {
		n++
		resp := &http.Response{StatusCode: 200, Header: http.Header{}, Body: http.NoBody, Request: req}
		if n%3 == 0 {
			resp.StatusCode = http.StatusTooManyRequests
			resp.Header.Set("Retry-After", "2")
		}
		fmt.Println(time.Since(start), req.URL.Host, resp.StatusCode)
		return resp, nil
	})
}

// inVirtualTime runs f in a bubble in which time passes only when all sleep, so
// that what it prints is exact.
func inVirtualTime(f func()) {
	synctest.Test(new(testing.T), func(*testing.T) { f() })
}

// A client that keeps to ten requests a second, waits for its turn, and waits
// for two seconds when the server says so.
func ExampleRateLimit() {
	inVirtualTime(func() {
		bucket, err := limit.NewTokenBucket(limit.TokenBucketConfig{
			Rate: limit.PerSecond(10), Burst: 1, MaxWait: 5 * time.Second,
		})
		if err != nil {
			fmt.Println(err)
			return
		}
		rt, err := transport.RateLimit(bucket, transport.RateLimitConfig{Base: upstream(time.Now())})
		if err != nil {
			fmt.Println(err)
			return
		}
		client := &http.Client{Transport: rt}
		for range 5 {
			resp, err := client.Get("http://api.example/items")
			if err != nil {
				fmt.Println(err)
				return
			}
			_ = resp.Body.Close()
		}
	})
	// Output:
	// 0s api.example 200
	// 100ms api.example 200
	// 200ms api.example 429
	// 2.3s api.example 200
	// 2.4s api.example 200
}

// A limiter that does not wait refuses during the pause, and nothing is sent.
func ExampleRateLimit_refuse() {
	inVirtualTime(func() {
		bucket, err := limit.NewTokenBucket(limit.TokenBucketConfig{Name: "api", Rate: limit.PerSecond(10)})
		if err != nil {
			fmt.Println(err)
			return
		}
		rt, err := transport.RateLimit(bucket, transport.RateLimitConfig{Base: upstream(time.Now())})
		if err != nil {
			fmt.Println(err)
			return
		}
		client := &http.Client{Transport: rt}
		for range 4 {
			resp, err := client.Get("http://api.example/items")
			if refused, ok := errors.AsType[*core.Rejection](err); ok {
				after, _ := refused.RetryAfter()
				fmt.Println("not sent:", refused.Reason, after)
				return
			}
			_ = resp.Body.Close()
		}
	})
	// Output:
	// 0s api.example 200
	// 0s api.example 200
	// 0s api.example 429
	// not sent: rate_limited 2s
}

// Ten requests a second to each server; a pause stops the one that asked.
func ExampleRateLimitBy() {
	inVirtualTime(func() {
		each, err := limit.NewKeyed(limit.KeyedConfig[transport.Origin]{
			Limit: limit.TokenBucketConfig{Rate: limit.PerSecond(10), Burst: 1, MaxWait: 5 * time.Second},
		})
		if err != nil {
			fmt.Println(err)
			return
		}
		rt, err := transport.RateLimitBy(each, transport.OriginOf, transport.RateLimitConfig{Base: upstream(time.Now())})
		if err != nil {
			fmt.Println(err)
			return
		}
		client := &http.Client{Transport: rt}
		for _, url := range []string{"http://a.example/", "http://b.example/", "http://a.example/", "http://b.example/", "http://a.example/"} {
			resp, err := client.Get(url)
			if err != nil {
				fmt.Println(err)
				return
			}
			_ = resp.Body.Close()
		}
	})
	// Output:
	// 0s a.example 200
	// 0s b.example 200
	// 100ms a.example 429
	// 100ms b.example 200
	// 2.2s a.example 200
}

func ExampleOriginOf() {
	for _, url := range []string{"https://API.example:443/items?page=2", "http://api.example:8080/"} {
		req, err := http.NewRequest(http.MethodGet, url, nil)
		if err != nil {
			fmt.Println(err)
			return
		}
		origin, err := transport.OriginOf(req)
		fmt.Println(origin, err)
	}
	// Output:
	// https://api.example <nil>
	// http://api.example:8080 <nil>
}

func ExamplePauseAsked() {
	for _, field := range []string{`"default";r=50;t=30`, `"minute";r=7;t=30, "day";r=0;t=7200`, `quota;t=1`} {
		resp := &http.Response{StatusCode: 200, Header: http.Header{}}
		resp.Header.Set("RateLimit", field)
		fmt.Println(field, "->", transport.PauseAsked(resp))
	}
	// Output:
	// "default";r=50;t=30 -> 0s
	// "minute";r=7;t=30, "day";r=0;t=7200 -> 2h0m0s
	// quota;t=1 -> 0s
}

func ExamplePauseAskedSeconds() {
	resp := &http.Response{StatusCode: 429, Header: http.Header{}}
	resp.Header.Set("X-RateLimit-Remaining", "0")
	resp.Header.Set("X-RateLimit-Reset", "40")
	fmt.Println(transport.PauseAsked(resp), transport.PauseAskedSeconds(resp))
	// Output: 0s 40s
}

// For a server such as GitHub's, set RateLimitConfig.Asked to PauseAskedUnix.
func ExamplePauseAskedUnix() {
	resp := &http.Response{StatusCode: 403, Header: http.Header{}}
	resp.Header.Set("Date", "Mon, 01 Jul 2013 17:47:00 GMT")
	resp.Header.Set("X-RateLimit-Remaining", "0")
	resp.Header.Set("X-RateLimit-Reset", "1372700873")
	fmt.Println(transport.PauseAskedUnix(resp))
	// Output: 53s
}
