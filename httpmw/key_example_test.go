package httpmw_test

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/netip"

	"github.com/surgewall/surgewall/httpmw"
)

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

// whose prints what a key function makes of a request from a peer.
func whose[K any](key func(*http.Request) (K, error), peer, name, value string) {
	r := httptest.NewRequest(http.MethodGet, "/", nil)
	r.RemoteAddr = peer
	if name != "" {
		r.Header.Set(name, value)
	}
	k, err := key(r)
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println(k)
}

// Without proxies the client is the peer, and nothing that it says.
func ExamplePeerIP() {
	whose(httpmw.PeerIP, "192.0.2.60:4711", "X-Forwarded-For", "1.1.1.1")
	whose(httpmw.PeerIP, "[2001:db8:1:2:3:4:5:6]:4711", "", "")
	// Output:
	// 192.0.2.60
	// 2001:db8:1:2::
}

// A hosting company gives a /56 to each customer.
func ExamplePeerIPWith() {
	key := must(httpmw.PeerIPWith(httpmw.ClientIPConfig{IPv6Prefix: 56}))
	whose(key, "[2001:db8:1:2ff:3:4:5:6]:4711", "", "")
	// Output:
	// 2001:db8:1:200::
}

// Two proxies in 10.0.0.0/24, one behind the other.
func ExampleForwardedForIP() {
	key := must(httpmw.ForwardedForIP(httpmw.ClientIPConfig{
		Proxies: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/24")},
	}))
	whose(key, "10.0.0.2:4711", "X-Forwarded-For", "1.1.1.1, 192.0.2.60, 10.0.0.1")
	whose(key, "192.0.2.61:4711", "X-Forwarded-For", "1.1.1.1") // came around the proxies
	whose(key, "10.0.0.2:4711", "", "")
	// Output:
	// 192.0.2.60
	// 192.0.2.61
	// httpmw: a trusted proxy did not send the header that tells its client
}

func ExampleForwardedIP() {
	key := must(httpmw.ForwardedIP(httpmw.ClientIPConfig{
		Proxies: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/24")},
	}))
	whose(key, "10.0.0.2:4711", "Forwarded", `for=1.1.1.1, for="[2001:db8:1:2::3]:4711";proto=https, for=10.0.0.1`)
	// Output:
	// 2001:db8:1:2::
}

// A content network, whose addresses change, and a balancer of our own behind it.
func ExampleHopCountIP() {
	key := must(httpmw.HopCountIP(2, httpmw.ClientIPConfig{
		Proxies: []netip.Prefix{netip.MustParsePrefix("10.0.0.1/32")},
	}))
	whose(key, "10.0.0.1:4711", "X-Forwarded-For", "1.1.1.1, 192.0.2.60, 198.51.100.7")
	// Output:
	// 192.0.2.60
}

func ExampleHeaderIP() {
	key := must(httpmw.HeaderIP("CF-Connecting-IP", httpmw.ClientIPConfig{
		Proxies: []netip.Prefix{netip.MustParsePrefix("173.245.48.0/20")},
	}))
	whose(key, "173.245.48.7:4711", "CF-Connecting-IP", "192.0.2.60")
	whose(key, "192.0.2.61:4711", "CF-Connecting-IP", "1.1.1.1")
	// Output:
	// 192.0.2.60
	// 192.0.2.61
}

func ExampleKeyHeader() {
	key := must(httpmw.KeyHeader("X-API-Key"))
	whose(key, "192.0.2.60:4711", "X-API-Key", "k-4711")
	whose(key, "192.0.2.60:4711", "", "")
	// Output:
	// k-4711
	// httpmw: the key is empty
}

// A limit for each route goes around the handlers, inside the mux.
func ExampleKeyPattern() {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /items/{id}", func(_ http.ResponseWriter, r *http.Request) {
		fmt.Println(httpmw.KeyPattern(r))
	})
	mux.ServeHTTP(httptest.NewRecorder(), httptest.NewRequest(http.MethodGet, "/items/7", nil))
	// Output:
	// GET /items/{id} <nil>
}

func ExampleKeyMethod() {
	whose(httpmw.KeyMethod, "192.0.2.60:4711", "", "")
	// Output:
	// GET
}

// As many limits as there are clients and methods.
func ExampleJoin() {
	key := httpmw.Join(httpmw.KeyText(httpmw.PeerIP), httpmw.KeyMethod)
	whose(key, "192.0.2.60:4711", "", "")
	// Output:
	// 10:192.0.2.603:GET
}

func ExampleKeyText() {
	whose(httpmw.KeyText(httpmw.PeerIP), "192.0.2.60:4711", "", "")
	// Output:
	// 192.0.2.60
}
