package httpmw

import (
	"context"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/netip"
	"net/url"
	"strconv"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/surgewall/surgewall/core/limit"
)

func newKeyed[K comparable](t testing.TB, name string, rate limit.Rate, burst int) *limit.Keyed[K] {
	t.Helper()
	k, err := limit.NewKeyed(limit.KeyedConfig[K]{
		Name: name, Limit: limit.TokenBucketConfig{Rate: rate, Burst: burst},
	})
	require.NoError(t, err)
	return k
}

// The limit holds for a crowd, and each answer tells of it in fields that parse.
func TestRateLimitOverTheWire(t *testing.T) {
	const burst, crowd = 10, 40
	for name, http2 := range map[string]bool{"HTTP/1.1": false, "HTTP/2": true} {
		t.Run(name, func(t *testing.T) {
			mw, err := RateLimit(RateLimitConfig[netip.Addr]{
				Guard: newKeyed[netip.Addr](t, `per "client"`, limit.PerHour(burst), burst), Key: PeerIP,
				Headers: HeadersDraft11 | HeadersLegacy, Problem: true, SkipPaths: []string{"/healthz"},
			})
			require.NoError(t, err)
			srv := serve(t, mw(answer(200)), http2)
			var wg sync.WaitGroup
			answers := make(chan *http.Response, crowd)
			for range crowd {
				wg.Go(func() {
					resp, err := srv.Client().Get(srv.URL)
					if err != nil {
						t.Error(err)
						return
					}
					_, _ = io.Copy(io.Discard, resp.Body)
					_ = resp.Body.Close()
					answers <- resp
				})
			}
			wg.Wait()
			close(answers)
			admitted := 0
			for resp := range answers {
				require.Equal(t, http2, resp.ProtoMajor == 2)
				policy, left := items(t, resp.Header, "RateLimit-Policy"), items(t, resp.Header, "RateLimit")
				require.Equal(t, []sfItem{{`per "client"`, []sfParam{{"q", int64(burst)}, {"w", int64(3600)}}}}, policy)
				require.Len(t, left, 1)
				r, after := left[0].get("r").(int64), left[0].get("t").(int64)
				require.Equal(t, strconv.Itoa(burst), resp.Header.Get("X-RateLimit-Limit"))
				require.Equal(t, strconv.FormatInt(r, 10), resp.Header.Get("X-RateLimit-Remaining"))
				reset, err := strconv.Atoi(resp.Header.Get("X-RateLimit-Reset"))
				require.NoError(t, err)
				require.True(t, 1 <= reset && reset <= 3600, reset)
				require.True(t, 1 <= after && after <= 3600, after)
				switch resp.StatusCode {
				case 200:
					admitted++
					require.Less(t, r, int64(burst))
					require.Empty(t, resp.Header.Get("Retry-After"))
				case 429:
					require.Zero(t, r)
					require.Equal(t, strconv.FormatInt(after, 10), resp.Header.Get("Retry-After"))
					require.Equal(t, "application/problem+json", resp.Header.Get("Content-Type"))
				default:
					require.Fail(t, resp.Status)
				}
			}
			require.Equal(t, burst, admitted)
			resp, _ := fetch(t, srv, "/healthz")
			require.Equal(t, 200, resp.StatusCode)
			require.Empty(t, resp.Header.Get("RateLimit"))
		})
	}
}

// Real proxies append to what a client forges; each client keeps its own limit.
func TestClientIPThroughRealProxies(t *testing.T) {
	const client = "127.0.0.2"
	dialer := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(client)}}
	probe, err := net.ListenTCP("tcp", &net.TCPAddr{IP: net.ParseIP(client)})
	if err != nil {
		t.Skip("there is one loopback address only:", err)
	}
	require.NoError(t, probe.Close())
	trusted := ClientIPConfig{Proxies: prefixes("127.0.0.1/32")}
	for proxies := range 3 {
		keys := map[string]ipKey{"prefixes": must(ForwardedForIP(trusted))}
		if proxies > 0 {
			keys["count"] = must(HopCountIP(proxies, trusted))
		} else {
			keys["peer"] = PeerIP
		}
		for name, key := range keys {
			heard := make(chan string, 1)
			srv := serve(t, http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { heard <- told(key, r) }), false)
			for range proxies {
				srv = serve(t, proxyTo(t, srv.URL), false)
			}
			tr := &http.Transport{DialContext: func(ctx context.Context, network, addr string) (net.Conn, error) {
				return dialer.DialContext(ctx, network, addr)
			}}
			defer tr.CloseIdleConnections()
			for _, forged := range [][]string{nil, {"1.1.1.1"}, {"1.1.1.1, 127.0.0.1"}, {"127.0.0.1", "127.0.0.1, 127.0.0.1"}, {""}, {"unknown,"}} {
				r, err := http.NewRequestWithContext(t.Context(), "GET", srv.URL, nil)
				require.NoError(t, err)
				r.Header["X-Forwarded-For"] = forged
				r.Header.Set("X-Real-Ip", "1.1.1.1")
				r.Header.Set("Connection", "X-Forwarded-For") // remove it, please
				resp, err := tr.RoundTrip(r)
				require.NoError(t, err)
				require.NoError(t, resp.Body.Close())
				require.Equal(t, client, awaiting(t, heard), "%s, %d proxies, %q", name, proxies, forged)
			}
		}
	}
}

func proxyTo(t *testing.T, target string) http.Handler {
	u, err := url.Parse(target)
	require.NoError(t, err)
	tr := &http.Transport{}
	t.Cleanup(tr.CloseIdleConnections)
	return &httputil.ReverseProxy{
		Transport: tr,
		ErrorLog:  log.New(io.Discard, "", 0),
		Rewrite: func(r *httputil.ProxyRequest) {
			r.SetURL(u)
			r.Out.Header["X-Forwarded-For"] = r.In.Header["X-Forwarded-For"] // so that SetXForwarded appends
			r.SetXForwarded()
		},
	}
}

// What a proxied service says of its own limits stays beside ours.
func TestHeadersOfAProxiedServiceStay(t *testing.T) {
	limited := func(name string, burst int) func(http.Handler) http.Handler {
		mw, err := RateLimit(RateLimitConfig[netip.Addr]{
			Guard: newKeyed[netip.Addr](t, name, limit.PerHour(burst), burst), Key: PeerIP, Headers: HeadersDraft10,
		})
		require.NoError(t, err)
		return mw
	}
	upstream := serve(t, limited("theirs", 5)(answer(200)), false)
	bothProtocols(t, limited("ours", 50)(proxyTo(t, upstream.URL)), func(t *testing.T, srv *httptest.Server) {
		resp, _ := fetch(t, srv, "/")
		var names []string
		for _, i := range items(t, resp.Header, "RateLimit") {
			names = append(names, i.value)
		}
		require.Equal(t, []string{"ours", "theirs"}, names)
		require.Len(t, items(t, resp.Header, "RateLimit-Policy"), 2)
	})
}

// Two streams of 400 bytes are charged when they have ended.
func TestStreamIsChargedForItsLength(t *testing.T) {
	keyed := newKeyed[netip.Addr](t, "bytes", limit.PerHour(1000), 1000)
	mw, err := RateLimit(RateLimitConfig[netip.Addr]{
		Guard: keyed, Key: PeerIP, Headers: HeadersDraft11, Unit: "content-bytes",
		CostAfter: func(_ *http.Request, a Answer) int { return int(a.Bytes) },
	})
	require.NoError(t, err)
	done := make(chan struct{}, 1)
	h := after(mw(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		for range 4 {
			_, _ = w.Write(make([]byte, 100))
			_ = http.NewResponseController(w).Flush()
		}
	})), func() { done <- struct{}{} })
	bothProtocols(t, h, func(t *testing.T, srv *httptest.Server) {
		resp, body := fetch(t, srv, "/")
		require.Equal(t, 200, resp.StatusCode)
		require.Len(t, body, 400)
		awaiting(t, done)
	})
	require.Equal(t, 200, keyed.Peek(netip.MustParseAddr("127.0.0.1"), 0).Remaining)
}
