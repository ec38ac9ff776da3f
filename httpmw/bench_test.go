package httpmw

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/surgewall/surgewall/core/limit"
)

func BenchmarkRateLimit(b *testing.B) {
	keyed, err := limit.NewKeyed(limit.KeyedConfig[netip.Addr]{
		Limit: limit.TokenBucketConfig{Rate: limit.PerSecond(1_000_000_000), Burst: 1_000_000_000},
	})
	require.NoError(b, err)
	forwarded, err := ForwardedForIP(ClientIPConfig{Proxies: prefixes("203.0.113.0/24")})
	require.NoError(b, err)
	for _, row := range []struct {
		name, remote string
		key          func(*http.Request) (netip.Addr, error)
	}{
		{"fixed", "203.0.113.195:54321", func(*http.Request) (netip.Addr, error) { return netip.AddrFrom4([4]byte{1, 2, 3, 4}), nil }},
		{"IPv4", "203.0.113.195:54321", PeerIP},
		{"IPv6", "[2001:db8:85a3:8d3:1319:8a2e:370:7348]:54321", PeerIP},
		{"forwarded", "203.0.113.195:54321", forwarded},
	} {
		mw, err := RateLimit(RateLimitConfig[netip.Addr]{Guard: keyed, Key: row.key})
		require.NoError(b, err)
		h := mw(http.HandlerFunc(ok))
		b.Run(row.name, func(b *testing.B) {
			w, r := &discard{header: http.Header{}}, httptest.NewRequest("GET", "/", nil)
			r.RemoteAddr = row.remote
			r.Header.Set("X-Forwarded-For", "198.51.100.7, 192.0.2.60")
			b.ReportAllocs()
			for b.Loop() {
				h.ServeHTTP(w, r)
			}
		})
	}
	for name, headers := range map[string]Headers{"draft": HeadersDraft11, "legacy": HeadersLegacy} {
		mw, err := RateLimit(RateLimitConfig[netip.Addr]{Guard: keyed, Key: PeerIP, Headers: headers})
		require.NoError(b, err)
		h := mw(http.HandlerFunc(ok))
		b.Run("headers-"+name, func(b *testing.B) {
			w, r := &discard{header: http.Header{}}, from("203.0.113.195:54321")
			b.ReportAllocs()
			for b.Loop() {
				clear(w.header)
				h.ServeHTTP(w, r)
			}
		})
	}
	b.Run("limiter-alone", func(b *testing.B) {
		k := netip.AddrFrom4([4]byte{1, 2, 3, 4})
		for b.Loop() {
			keyed.Allow(k)
		}
	})
	for name, remote := range map[string]string{"IPv4": "203.0.113.195:54321", "IPv6": "[2001:db8:85a3:8d3:1319:8a2e:370:7348]:54321"} {
		b.Run(fmt.Sprintf("PeerIP-%s", name), func(b *testing.B) {
			r := httptest.NewRequest("GET", "/", nil)
			r.RemoteAddr = remote
			for b.Loop() {
				_, _ = PeerIP(r)
			}
		})
	}
}
