package sqlpool

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgproto3"
	"github.com/stretchr/testify/require"
)

// fakeServer speaks as much of the protocol as a Cluster hears, over net.Pipe, so
// that it lives in a synctest bubble. It answers a probe with what it is set to,
// a token's question likewise, and anything else with its name.
type fakeServer struct {
	name string

	mu       sync.Mutex
	replica  bool
	timeline uint32
	lsn      lsn
	system   uint64
	started  int
	down     bool              // refuses dials
	full     bool              // answers dials with 53300
	silent   bool              // answers nothing
	delay    time.Duration     // of the answer to a probe
	conns    map[net.Conn]bool // true: it may only read
	probes   int
	dials    int
}

func (s *fakeServer) set(fn func(*fakeServer)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	fn(s)
}

// crash refuses dials and drops all connections.
func (s *fakeServer) crash() {
	s.set(func(s *fakeServer) {
		s.down = true
		for c := range s.conns {
			_ = c.Close()
		}
	})
}

// restart accepts again, as what fn makes of it. No connection survives it.
func (s *fakeServer) restart(fn func(*fakeServer)) {
	s.crash()
	s.set(func(s *fakeServer) {
		fn(s)
		s.started++
		s.down = false
	})
}

func (s *fakeServer) count(what func(*fakeServer) int) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return what(s)
}

func (s *fakeServer) dial() (net.Conn, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.dials++
	if s.down {
		return nil, errors.New("connection refused")
	}
	client, server := net.Pipe()
	if s.conns == nil {
		s.conns = map[net.Conn]bool{}
	}
	s.conns[server] = s.replica
	go s.serve(server, s.replica)
	return client, nil
}

func (s *fakeServer) serve(c net.Conn, standby bool) {
	defer func() {
		s.set(func(s *fakeServer) { delete(s.conns, c) })
		_ = c.Close()
	}()
	b := pgproto3.NewBackend(c, c)
	if _, err := b.ReceiveStartupMessage(); err != nil {
		return
	}
	if s.count(func(s *fakeServer) int { return map[bool]int{true: 1}[s.full] }) == 1 {
		b.Send(&pgproto3.ErrorResponse{Severity: "FATAL", SeverityUnlocalized: "FATAL", Code: "53300", Message: "too many clients"})
		_ = b.Flush()
		return
	}
	b.Send(&pgproto3.AuthenticationOk{})
	hot := map[bool]string{true: "on", false: "off"}
	b.Send(&pgproto3.ParameterStatus{Name: "standard_conforming_strings", Value: "on"})
	b.Send(&pgproto3.ParameterStatus{Name: "client_encoding", Value: "UTF8"})
	b.Send(&pgproto3.ParameterStatus{Name: "in_hot_standby", Value: hot[standby]})
	b.Send(&pgproto3.BackendKeyData{ProcessID: 1, SecretKey: []byte{0, 0, 0, 1}})
	b.Send(&pgproto3.ReadyForQuery{TxStatus: 'I'})
	if b.Flush() != nil {
		return
	}
	for {
		m, err := b.Receive()
		q, ok := m.(*pgproto3.Query)
		if err != nil || !ok {
			return
		}
		if !s.answer(b, q.String, &standby) {
			return
		}
	}
}

func (s *fakeServer) answer(b *pgproto3.Backend, sql string, standby *bool) bool {
	s.mu.Lock()
	if sql == probeSQL {
		s.probes++
	}
	silent, delay := s.silent, s.delay
	replica, timeline, at := s.replica, s.timeline, s.lsn
	which := []string{strconv.FormatUint(s.system, 10), strconv.Itoa(s.started + 100*int(s.name[0]))}
	s.mu.Unlock()
	if silent {
		_, _ = b.Receive() // until the other end gives up
		return false
	}
	if delay > 0 && sql == probeSQL {
		time.Sleep(delay) // in the bubble's time
	}
	row := func(values ...string) {
		var fields []pgproto3.FieldDescription
		var raw [][]byte
		for i, v := range values {
			fields = append(fields, pgproto3.FieldDescription{Name: []byte("c" + strconv.Itoa(i)), DataTypeOID: 25, DataTypeSize: -1, TypeModifier: -1})
			raw = append(raw, []byte(v))
		}
		b.Send(&pgproto3.RowDescription{Fields: fields})
		b.Send(&pgproto3.DataRow{Values: raw})
		b.Send(&pgproto3.CommandComplete{CommandTag: []byte("SELECT 1")})
	}
	switch {
	case sql == probeSQL:
		row(map[bool]string{true: "t", false: "f"}[replica], fmt.Sprintf("%X", timeline), at.String(), which[0], which[1])
	case sql == "select "+serverSQL:
		row(which...)
	case strings.Contains(sql, "pg_current_wal_insert_lsn"):
		row(fmt.Sprintf("%08X", timeline), at.String(), which[0], which[1])
	case strings.HasPrefix(sql, "insert") && replica:
		b.Send(&pgproto3.ErrorResponse{Severity: "ERROR", SeverityUnlocalized: "ERROR", Code: "25006", Message: "read-only"})
	default:
		row(s.name)
	}
	if *standby && !replica { // it was promoted
		*standby = false
		b.Send(&pgproto3.ParameterStatus{Name: "in_hot_standby", Value: "off"})
	}
	b.Send(&pgproto3.ReadyForQuery{TxStatus: 'I'})
	return b.Flush() == nil
}

// fakeServers are a primary "a" and replicas "b", "c", …, with all replayed.
func fakeServers(n int) []*fakeServer {
	var all []*fakeServer
	for i := range n {
		all = append(all, &fakeServer{name: string(rune('a' + i)), replica: i > 0, timeline: 1, lsn: 1000, system: fakeSystem})
	}
	return all
}

// fakeCluster is a Cluster of fake servers, all of which that answer at once were
// asked. It is to be closed in the bubble.
func fakeCluster(t *testing.T, cfg ClusterConfig, all ...*fakeServer) *Cluster {
	t.Helper()
	c, err := OpenCluster(context.Background(), fakeConfig(t, cfg, all...))
	require.NoError(t, err)
	synctest.Wait()
	return c
}

func fakeConfig(t *testing.T, cfg ClusterConfig, all ...*fakeServer) ClusterConfig {
	t.Helper()
	cfg.Pool.Pooled = PooledNo // to be asked takes a server its delay
	hosts := make([]string, len(all))
	byName := map[string]*fakeServer{}
	for i, s := range all {
		hosts[i] = s.name
		byName[s.name] = s
	}
	conn, err := pgx.ParseConfig("postgres://app@" + strings.Join(hosts, ",") + "/shop?sslmode=disable&default_query_exec_mode=simple_protocol")
	require.NoError(t, err)
	conn.LookupFunc = func(_ context.Context, host string) ([]string, error) { return []string{host}, nil }
	conn.DialFunc = func(_ context.Context, _, addr string) (net.Conn, error) {
		host, _, _ := net.SplitHostPort(addr)
		if byName[host] == nil { // a cancel request, which goes to the other end's address
			return nil, errors.New("not there")
		}
		return byName[host].dial()
	}
	cfg.Pool.ConnConfig = conn
	// That a pipe's other end has closed it shows only when it is used, unlike
	// with a socket. So nothing is kept that is not in use.
	if cfg.Pool.MinIdle == 0 {
		cfg.Pool.MinIdle, cfg.Pool.MaxIdleTime = Off, time.Millisecond
	}
	return cfg
}

const fakeSystem = 7_000_000_000_000_000_001

// fakeToken is one of fakeServers.
func fakeToken(timeline uint32, at lsn) Token {
	return Token{identity{system: fakeSystem}.family(), timeline, at}
}

// idle waits, in the bubble's time, until the pools have closed what is not in use.
func idle() { time.Sleep(5 * time.Second) }

// promoteUnderAConnection makes b the primary, with a connection in its pool that
// was made when it was a standby: a write has to ask on it first.
func promoteUnderAConnection(t *testing.T, c *Cluster, all ...*fakeServer) {
	t.Helper()
	held, err := c.Read(Any()).Acquire(context.Background())
	require.NoError(t, err)
	require.Equal(t, "b", held.Conn().Config().Host)
	all[1].set(func(s *fakeServer) { s.replica, s.timeline = false, 2 })
	c.kick()
	time.Sleep(2 * time.Second)
	require.Equal(t, "b:5432", c.Stats().Primary)
	held.Release()
}

// closeFake ends a cluster in the bubble.
func closeFake(t *testing.T, c *Cluster) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	require.NoError(t, c.Close(ctx))
}

// ask is which server answers.
func ask(ctx context.Context, r Route) (name string, err error) {
	err = r.QueryRow(ctx, "select name").Scan(&name)
	return name, err
}

func mustAsk(t *testing.T, r Route) string {
	t.Helper()
	name, err := ask(context.Background(), r)
	require.NoError(t, err)
	return name
}
