//go:build unix

package sqlpool

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"math/big"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"github.com/surgewall/surgewall/internal/pgtest"
)

// secure switches TLS on, and returns how to connect with it.
func secure(t *testing.T, server *pgtest.Server) *pgx.ConnConfig {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	template := &x509.Certificate{
		SerialNumber:          big.NewInt(1),
		NotBefore:             time.Now().Add(-time.Hour),
		NotAfter:              time.Now().Add(time.Hour),
		IPAddresses:           []net.IP{net.IPv4(127, 0, 0, 1)},
		IsCA:                  true,
		BasicConstraintsValid: true,
	}
	cert, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	require.NoError(t, err)
	secret, err := x509.MarshalPKCS8PrivateKey(key)
	require.NoError(t, err)
	certPEM := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert})
	secretPEM := pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: secret})

	ctx := t.Context()
	admin, err := pgx.Connect(ctx, server.DSN())
	require.NoError(t, err)
	defer admin.Close(ctx)
	// The server writes the files: they must be its own.
	for name, text := range map[string][]byte{"server.crt": certPEM, "server.key": secretPEM} {
		_, err = admin.Exec(ctx, "copy (select unnest(string_to_array('"+strings.TrimSpace(string(text))+"', E'\n')))"+
			" to program 'umask 077; cat > "+name+"'")
		require.NoError(t, err)
	}
	_, err = admin.Exec(ctx, "alter system set ssl = on")
	require.NoError(t, err)
	_, err = admin.Exec(ctx, "select pg_reload_conf()")
	require.NoError(t, err)

	cfg, err := pgx.ParseConfig(server.DSN())
	require.NoError(t, err)
	roots := x509.NewCertPool()
	require.True(t, roots.AppendCertsFromPEM(certPEM))
	cfg.TLSConfig = &tls.Config{RootCAs: roots, ServerName: "127.0.0.1"}
	// The reload takes a moment.
	eventually(t, func() bool {
		c, err := pgx.ConnectConfig(ctx, cfg)
		if err != nil {
			return false
		}
		return c.Close(ctx) == nil
	})
	return cfg
}

// Under TLS, the look at the socket sees the bytes of TLS. It must not take what
// TLS says of its own accord for an alarm, and must see that the server is gone.
func TestPeekUnderTLS(t *testing.T) {
	server := pgtest.Cluster(t)
	cfg := secure(t, server)
	for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
		t.Run(tls.VersionName(version), func(t *testing.T) {
			const n = 4
			cfg := cfg.Copy()
			cfg.TLSConfig.MinVersion, cfg.TLSConfig.MaxVersion = version, version
			p := open(t, Config{ConnConfig: cfg, MinIdle: n, Max: n, MaxAge: Off, MaxIdleTime: Off})
			warm(t, p, n)
			var spoken string
			require.NoError(t, p.QueryRow(t.Context(),
				"select version from pg_stat_ssl where pid = pg_backend_pid()").Scan(&spoken))
			require.Equal(t, strings.ReplaceAll(tls.VersionName(version), " ", "v"), spoken)

			var wg sync.WaitGroup
			for range 2 * n {
				wg.Go(func() {
					for i := range 500 {
						// The lengths of answers that fill a record of TLS, and more.
						var got string
						err := p.QueryRow(t.Context(), "select repeat('x', $1)", i*100).Scan(&got)
						if err != nil || len(got) != i*100 {
							t.Errorf("%d bytes of %d: %v", len(got), i*100, err)
							return
						}
					}
				})
			}
			wg.Wait()
			s := p.Stats()
			require.EqualValues(t, n, s.Created, "a false alarm")
			require.Zero(t, s.DestroyedUnhealthy+s.DestroyedBroken)

			admin, err := pgx.Connect(t.Context(), server.DSN())
			require.NoError(t, err)
			defer admin.Close(t.Context())
			_, err = admin.Exec(t.Context(), `select pg_terminate_backend(pid, 5000) from pg_stat_ssl where ssl`)
			require.NoError(t, err)
			for range 50 {
				wg.Go(func() {
					if _, err := p.Exec(t.Context(), "select 1"); err != nil {
						t.Error(err)
					}
				})
			}
			wg.Wait()
			require.EqualValues(t, n, p.Stats().DestroyedUnhealthy)
		})
	}
}
